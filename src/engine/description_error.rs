//! Why a search engine's description can't be used, with the limits and namespaces that the messages name.

use super::{TemplateError, XmlError};

/// The namespace of OpenSearch 1.1.
pub(super) const OPENSEARCH: &str = "http://a9.com/-/spec/opensearch/1.1/";
/// The namespace of the extensions.
pub(super) const OURS: &str = "urn:umbel:engine";

/// Longest description in bytes.
pub const MAX_DESCRIPTION_LEN: usize = 64 * 1024;

/// Why a description can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptionError {
    /// It exceeds the length limit.
    #[error("the description is longer than {MAX_DESCRIPTION_LEN} bytes")]
    TooLong,
    /// It is invalid XML.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// Its root is another element.
    #[error("the document is not an OpenSearch 1.1 description: its root is not OpenSearchDescription of {OPENSEARCH}")]
    Root,
    /// It defines no usable name of the engine.
    #[error(
        "the ShortName has no letters, digits or hyphens for an engine name: add <umbel:engine name=\"…\"/> (xmlns:umbel=\"{OURS}\") or \
         write NAME= before it"
    )]
    Name,
    /// It has no `Url` for results in a supported format.
    #[error(
        "the description has no Url for results as RSS, Atom or JSON, nor one as HTML with an <umbel:results type=\"text/html\" …/> \
         (xmlns:umbel=\"{OURS}\")"
    )]
    NoUrl,
    /// It has only results in HTML, and a page is to query it.
    #[error(
        "the description has results only as HTML, which pages don't support: it needs a Url for RSS, Atom or JSON"
    )]
    OnlyHtml,
    /// The template of its only such `Url` can't be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// An `umbel:results` element lacks an attribute.
    #[error("the umbel:results element lacks the attribute \"{0}\"")]
    Attribute(&'static str),
    /// A CSS selector is invalid.
    #[error("\"{0}\" is not a CSS selector")]
    Selector(String),
    /// A JSON pointer or pattern is invalid.
    #[error(
        "\"{0}\" is neither a JSON pointer such as /title nor a text with pointers in braces such as /page/{{/key}}"
    )]
    Pattern(String),
}
