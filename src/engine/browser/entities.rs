//! Decoding of HTML entities by the browser's parser.

use web_sys::{DomParser, SupportedType};

/// `text` with decoded entities. `text` has no tags, so it is parsed as a document with one text node.
pub(in crate::engine) fn decoded(text: &str) -> String {
    let parsed = DomParser::new().and_then(|parser| parser.parse_from_string(text, SupportedType::TextHtml));
    // The parser accepts any text.
    parsed.ok().and_then(|document| document.body()?.text_content()).unwrap_or_default()
}
