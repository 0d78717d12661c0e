//! Walk over an XML document by quick-xml's reader, without a tree.

use quick_xml::{
    events::{BytesStart, Event},
    name::{NamespaceError, ResolveResult},
    reader::NsReader,
};

use crate::{
    base::Counter as _,
    engine::xml::{Attributes, MAX_ATTRIBUTES, MAX_DEPTH, XmlError, XmlEvent},
};

impl From<quick_xml::Error> for XmlError {
    fn from(error: quick_xml::Error) -> Self {
        match error {
            quick_xml::Error::Namespace(NamespaceError::TooManyBindings(_)) => Self::TooDeep,
            quick_xml::Error::Encoding(_) => Self::Encoding,
            _ => Self::Malformed,
        }
    }
}

/// Passes all events of `document` to `visit`.
pub(in crate::engine) fn walk(document: &str, mut visit: impl FnMut(XmlEvent<'_>)) -> Result<(), XmlError> {
    let mut reader = NsReader::from_str(document);
    reader.config_mut().expand_empty_elements = true;
    let (mut depth, mut has_root) = (0_usize, false);
    loop {
        let (namespace, event) = reader.read_resolved_event()?;
        match event {
            Event::Decl(declaration) => {
                let encoding = declaration.encoding().transpose().map_err(|_| XmlError::Malformed)?;
                if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("utf-8")) {
                    return Err(XmlError::Encoding);
                }
            }
            Event::Start(start) => {
                depth.increment();
                // A document has one root element.
                if depth == 1 && core::mem::replace(&mut has_root, true) {
                    return Err(XmlError::Malformed);
                }
                check_element(&start, depth)?;
                let namespace = match namespace {
                    ResolveResult::Bound(namespace) => namespace.0,
                    ResolveResult::Unbound => "",
                    ResolveResult::Unknown(_) => return Err(XmlError::Malformed),
                };
                let value = |name: &str| value(&start, name);
                visit(XmlEvent::Open { namespace, name: start.local_name().as_ref(), attributes: Attributes(&value) });
            }
            Event::End(_) => {
                depth.decrement();
                visit(XmlEvent::Close);
            }
            Event::Text(text) => visit(XmlEvent::Text(&text)),
            Event::CData(text) => visit(XmlEvent::Text(&text)),
            Event::GeneralRef(reference) => {
                let character = reference.resolve_char_ref()?;
                let mut buffer = [0; 4];
                let text = match character {
                    Some(character) => &*character.encode_utf8(&mut buffer),
                    None => quick_xml::escape::resolve_predefined_entity(&reference).ok_or(XmlError::Entities)?,
                };
                visit(XmlEvent::Text(text));
            }
            Event::DocType(_) => return Err(XmlError::Entities),
            Event::Eof => return if depth == 0 && has_root { Ok(()) } else { Err(XmlError::Malformed) },
            Event::Empty(_) | Event::Comment(_) | Event::PI(_) => {}
        }
    }
}

fn check_element(start: &BytesStart<'_>, depth: usize) -> Result<(), XmlError> {
    // The reader's check for duplicates takes quadratic time, so it is off.
    let mut attributes = start.attributes();
    let attributes = attributes.with_checks(false);
    if depth > MAX_DEPTH || attributes.by_ref().take(MAX_ATTRIBUTES.saturating_add(1)).count() > MAX_ATTRIBUTES {
        return Err(XmlError::TooDeep);
    }
    if start.attributes().any(|attribute| attribute.is_err()) { Err(XmlError::Malformed) } else { Ok(()) }
}

fn value(start: &BytesStart<'_>, name: &str) -> Option<String> {
    let found = start.attributes().flatten().find(|attribute| attribute.key.as_ref() == name)?;
    found.normalized_value(quick_xml::XmlVersion::Implicit1_0).ok().map(std::borrow::Cow::into_owned)
}
