//! Errors of a search engine's description, with the limits and namespaces in their messages.

use super::{TemplateError, XmlError};

/// The namespace of OpenSearch 1.1.
pub(super) const OPENSEARCH: &str = "http://a9.com/-/spec/opensearch/1.1/";
/// The namespace of the extensions.
pub(super) const EXTENSION: &str = "urn:umbel:engine";

/// Maximum bytes of a description.
pub const MAX_DESCRIPTION_LEN: usize = 64 * 1024;

/// The reason why a description can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptionError {
    /// The description exceeds [`MAX_DESCRIPTION_LEN`].
    #[error("the description is longer than {MAX_DESCRIPTION_LEN} bytes")]
    TooLong,
    /// The description is not valid XML.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// The root element is not `OpenSearchDescription`.
    #[error("the document is not an OpenSearch 1.1 description: its root is not OpenSearchDescription of {OPENSEARCH}")]
    Root,
    /// The description has no valid engine name.
    #[error(
        "the description gives no valid engine name, at most 32 of a-z, 0-9 and -: add <umbel:engine name=\"…\"/> \
         (xmlns:umbel=\"{EXTENSION}\") or write NAME= before the description"
    )]
    Name,
    /// The description has no `Url` for results in a supported format.
    #[error(
        "the description has no Url for results as RSS, Atom or JSON, and no Url for HTML with an \
         <umbel:results type=\"text/html\" …/> (xmlns:umbel=\"{EXTENSION}\")"
    )]
    NoUrl,
    /// The only format is HTML, which an exit in a page doesn't support.
    #[error(
        "the description has results only as HTML, which pages don't support: it needs a Url for RSS, Atom or JSON"
    )]
    OnlyHtml,
    /// No `Url` in a supported format has a usable template.
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
