//! XML from strangers: a walk over a document that holds nothing but elements and text.
//!
//! A document type is refused, and with it every entity but the five that XML itself has and characters by number: so nothing
//! is fetched and nothing grows. Depth, and attributes of an element, are capped; the length is the caller's to cap. Only
//! UTF-8 is read, whatever the document says of itself, or what is checked here could be read as something else later.

pub(super) use super::parser::xml::walk;

/// Elements within each other.
pub(super) const MOST_DEPTH: usize = 32;
/// Attributes of one element.
pub(super) const MOST_ATTRIBUTES: usize = 32;

/// Why a document isn't read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// It is no XML, or not all of a document.
    #[error("it is no well-formed XML")]
    Malformed,
    /// It says that it is not in UTF-8, or isn't.
    #[error("it is not in UTF-8")]
    Encoding,
    /// It has a document type or an entity.
    #[error("it has a document type or entities of its own, which are not read")]
    Entities,
    /// Elements stand too deep, or have too many attributes.
    #[error("it has elements deeper than {MOST_DEPTH} or with more than {MOST_ATTRIBUTES} attributes")]
    TooDeep,
}

/// What a walk meets.
pub(super) enum Piece<'a> {
    /// An element begins.
    Open {
        /// The URI of its namespace, empty if it has none.
        namespace: &'a str,
        /// Its name within that.
        name: &'a str,
        /// Its attributes.
        attributes: Attributes<'a>,
    },
    /// Text within the element that began last and hasn't ended; one text may come in pieces.
    Text(&'a str),
    /// The element that began last and hasn't ended ends.
    Close,
}

/// The attributes of an element: the value of one by its name, which has no prefix.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a dyn Fn(&str) -> Option<String>);

impl Attributes<'_> {
    /// The value of `name`, which has no prefix.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }
}
