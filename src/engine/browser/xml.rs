//! Walk over an XML document by the browser's parser. Without custom entities, the tree is no larger than the document.

use wasm_bindgen::JsCast as _;
use web_sys::{DomParser, Element, Node, SupportedType};

use crate::{
    base::Counter as _,
    engine::xml::{Attributes, MAX_ATTRIBUTES, MAX_DEPTH, XmlError, XmlEvent, check_extent},
};

/// Passes all events of `document` to `visit`.
pub(in crate::engine) fn walk(document: &str, mut visit: impl FnMut(XmlEvent<'_>)) -> Result<(), XmlError> {
    // The text search also rejects declarations without effect, such as those in comments.
    if document.contains("<!DOCTYPE") || document.contains("<!ENTITY") {
        return Err(XmlError::Entities);
    }
    check_encoding(document)?;
    // Without this check, parsing could block the page for seconds.
    check_extent(document)?;
    let parsed = DomParser::new().and_then(|parser| parser.parse_from_string(document, SupportedType::ApplicationXml));
    let parsed = parsed.map_err(|_| XmlError::Malformed)?;
    let root = parsed.document_element().ok_or(XmlError::Malformed)?;
    // After an error, browsers return a document with the element `parsererror`.
    if parsed.get_elements_by_tag_name("parsererror").length() > 0 {
        return Err(XmlError::Malformed);
    }
    let (mut node, mut depth) = (Node::from(root), 0_usize);
    loop {
        let mut next = None;
        if let Some(element) = node.dyn_ref::<Element>() {
            depth.increment();
            open(element, depth, &mut visit)?;
            next = node.first_child();
            if next.is_none() {
                visit(XmlEvent::Close);
                depth.decrement();
            }
        } else if matches!(node.node_type(), Node::TEXT_NODE | Node::CDATA_SECTION_NODE) {
            visit(XmlEvent::Text(&node.node_value().unwrap_or_default()));
        }
        while next.is_none() {
            if depth == 0 {
                return Ok(());
            }
            next = node.next_sibling();
            if next.is_none() {
                node = node.parent_node().ok_or(XmlError::Malformed)?;
                visit(XmlEvent::Close);
                depth.decrement();
            }
        }
        node = next.ok_or(XmlError::Malformed)?;
    }
}

fn open(element: &Element, depth: usize, visit: &mut impl FnMut(XmlEvent<'_>)) -> Result<(), XmlError> {
    let count = usize::try_from(element.attributes().length()).unwrap_or(usize::MAX);
    if depth > MAX_DEPTH || count > MAX_ATTRIBUTES {
        return Err(XmlError::TooDeep);
    }
    let (namespace, name) = (element.namespace_uri().unwrap_or_default(), element.local_name());
    let value = |name: &str| element.get_attribute_ns(None, name);
    visit(XmlEvent::Open { namespace: &namespace, name: &name, attributes: Attributes(&value) });
    Ok(())
}

/// Checks the declared encoding. The browser's parser receives characters, and ignores the declaration.
fn check_encoding(document: &str) -> Result<(), XmlError> {
    let declaration = document.strip_prefix("<?xml").and_then(|rest| rest.split_once("?>")).map(|(inner, _)| inner);
    let encoding = declaration.and_then(|inner| inner.split_once("encoding")).map(|(_, value)| value.trim_start());
    let encoding = encoding.and_then(|value| value.strip_prefix('=')).map(|value| value.trim_start());
    let Some(encoding) = encoding else { return Ok(()) };
    let encoding = encoding.trim_start_matches(['"', '\'']).split(['"', '\'']).next().unwrap_or_default();
    if encoding.eq_ignore_ascii_case("utf-8") { Ok(()) } else { Err(XmlError::Encoding) }
}
