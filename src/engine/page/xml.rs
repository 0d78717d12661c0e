//! Walks over XML by the browser's parser. Its tree is no larger than the document, which has no custom entities.

use wasm_bindgen::JsCast as _;
use web_sys::{DomParser, Element, Node, SupportedType};

use crate::{
    base::Counter as _,
    engine::xml::{Attributes, MAX_ATTRIBUTES, MAX_DEPTH, Piece, XmlError, check_extent},
};

/// Walks over all of `document`.
pub(in crate::engine) fn walk(document: &str, mut visit: impl FnMut(Piece<'_>)) -> Result<(), XmlError> {
    // Also rejected where it has no meaning, as in a comment: the parser's interpretation is unknown beforehand.
    if document.contains("<!DOCTYPE") || document.contains("<!ENTITY") {
        return Err(XmlError::Entities);
    }
    check_encoding(document)?;
    // Otherwise parsing alone could block the page for seconds.
    check_extent(document)?;
    let parsed = DomParser::new().and_then(|parser| parser.parse_from_string(document, SupportedType::ApplicationXml));
    let parsed = parsed.map_err(|_| XmlError::Malformed)?;
    let root = parsed.document_element().ok_or(XmlError::Malformed)?;
    // Browsers insert this element where parsing failed.
    if parsed.get_elements_by_tag_name("parsererror").length() > 0 {
        return Err(XmlError::Malformed);
    }
    let (mut at, mut depth) = (Node::from(root), 0_usize);
    loop {
        let mut next = None;
        if let Some(element) = at.dyn_ref::<Element>() {
            depth.increment();
            open(element, depth, &mut visit)?;
            next = at.first_child();
            if next.is_none() {
                visit(Piece::Close);
                depth.decrement();
            }
        } else if matches!(at.node_type(), Node::TEXT_NODE | Node::CDATA_SECTION_NODE) {
            visit(Piece::Text(&at.node_value().unwrap_or_default()));
        }
        while next.is_none() {
            if depth == 0 {
                return Ok(());
            }
            next = at.next_sibling();
            if next.is_none() {
                at = at.parent_node().ok_or(XmlError::Malformed)?;
                visit(Piece::Close);
                depth.decrement();
            }
        }
        at = next.ok_or(XmlError::Malformed)?;
    }
}

fn open(element: &Element, depth: usize, visit: &mut impl FnMut(Piece<'_>)) -> Result<(), XmlError> {
    let count = usize::try_from(element.attributes().length()).unwrap_or(usize::MAX);
    if depth > MAX_DEPTH || count > MAX_ATTRIBUTES {
        return Err(XmlError::TooDeep);
    }
    let (namespace, name) = (element.namespace_uri().unwrap_or_default(), element.local_name());
    let value = |name: &str| element.get_attribute_ns(None, name);
    visit(Piece::Open { namespace: &namespace, name: &name, attributes: Attributes(&value) });
    Ok(())
}

/// Checks the declared encoding. The parser gets characters and ignores it.
fn check_encoding(document: &str) -> Result<(), XmlError> {
    let declaration = document.strip_prefix("<?xml").and_then(|rest| rest.split_once("?>")).map(|(inner, _)| inner);
    let named = declaration.and_then(|inner| inner.split_once("encoding")).map(|(_, value)| value.trim_start());
    let named = named.and_then(|value| value.strip_prefix('=')).map(|value| value.trim_start());
    let Some(named) = named else { return Ok(()) };
    let named = named.trim_start_matches(['"', '\'']).split(['"', '\'']).next().unwrap_or_default();
    if named.eq_ignore_ascii_case("utf-8") { Ok(()) } else { Err(XmlError::Encoding) }
}
