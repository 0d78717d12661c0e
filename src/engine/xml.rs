//! XML from strangers: a walk over a document that holds nothing but elements and text.
//!
//! A document type is refused, and with it every entity but the five that XML itself has and characters by number: so nothing
//! is fetched and nothing grows. Depth, and attributes of an element, are capped; the length is the caller's to cap. Only
//! UTF-8 is read, whatever the document says of itself, or what is checked here could be read as something else later.

use quick_xml::{
    events::{BytesStart, Event},
    name::{NamespaceError, ResolveResult},
    reader::NsReader,
};

/// Elements within each other.
const MOST_DEPTH: usize = 32;
/// Attributes of one element.
const MOST_ATTRIBUTES: usize = 32;

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

impl From<quick_xml::Error> for XmlError {
    fn from(error: quick_xml::Error) -> Self {
        match error {
            quick_xml::Error::Namespace(NamespaceError::TooManyBindings(_)) => Self::TooDeep,
            quick_xml::Error::Encoding(_) => Self::Encoding,
            _ => Self::Malformed,
        }
    }
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

/// The attributes of an element.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(&'a BytesStart<'a>);

impl Attributes<'_> {
    /// The value of `name`, which has no prefix.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        let found = self.0.attributes().flatten().find(|attribute| attribute.key.as_ref() == name)?;
        found.normalized_value(quick_xml::XmlVersion::Implicit1_0).ok().map(std::borrow::Cow::into_owned)
    }
}

/// Walks over all of `document`.
pub(super) fn walk(document: &str, mut visit: impl FnMut(Piece<'_>)) -> Result<(), XmlError> {
    let mut reader = NsReader::from_str(document);
    reader.config_mut().expand_empty_elements = true;
    let (mut depth, mut seen) = (0_usize, false);
    loop {
        let (namespace, event) = reader.read_resolved_event()?;
        match event {
            Event::Decl(declaration) => {
                let named = declaration.encoding().transpose().map_err(|_| XmlError::Malformed)?;
                if named.is_some_and(|named| !named.eq_ignore_ascii_case("utf-8")) {
                    return Err(XmlError::Encoding);
                }
            }
            Event::Start(start) => {
                depth = depth.saturating_add(1);
                // One document has one element at its root.
                if depth == 1 && core::mem::replace(&mut seen, true) {
                    return Err(XmlError::Malformed);
                }
                check(&start, depth)?;
                let namespace = match namespace {
                    ResolveResult::Bound(namespace) => namespace.0,
                    ResolveResult::Unbound => "",
                    ResolveResult::Unknown(_) => return Err(XmlError::Malformed),
                };
                visit(Piece::Open { namespace, name: start.local_name().as_ref(), attributes: Attributes(&start) });
            }
            Event::End(_) => {
                depth = depth.saturating_sub(1);
                visit(Piece::Close);
            }
            Event::Text(text) => visit(Piece::Text(&text)),
            Event::CData(text) => visit(Piece::Text(&text)),
            Event::GeneralRef(reference) => {
                let by_number = reference.resolve_char_ref()?;
                let mut buffer = [0; 4];
                let text = match by_number {
                    Some(character) => &*character.encode_utf8(&mut buffer),
                    None => quick_xml::escape::resolve_predefined_entity(&reference).ok_or(XmlError::Entities)?,
                };
                visit(Piece::Text(text));
            }
            Event::DocType(_) => return Err(XmlError::Entities),
            Event::Eof => return if depth == 0 && seen { Ok(()) } else { Err(XmlError::Malformed) },
            Event::Empty(_) | Event::Comment(_) | Event::PI(_) => {}
        }
    }
}

fn check(start: &BytesStart<'_>, depth: usize) -> Result<(), XmlError> {
    // Without the reader's own search for doubles, which takes the square of their number.
    let mut attributes = start.attributes();
    let attributes = attributes.with_checks(false);
    if depth > MOST_DEPTH || attributes.by_ref().take(MOST_ATTRIBUTES.saturating_add(1)).count() > MOST_ATTRIBUTES {
        return Err(XmlError::TooDeep);
    }
    if start.attributes().any(|attribute| attribute.is_err()) { Err(XmlError::Malformed) } else { Ok(()) }
}
