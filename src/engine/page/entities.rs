//! HTML's entities by the browser's parser.

use web_sys::{DomParser, SupportedType};

/// `text`, which has no tags, with its entities decoded: a document of one text.
pub(in crate::engine) fn decoded(text: &str) -> String {
    let parsed = DomParser::new().and_then(|parser| parser.parse_from_string(text, SupportedType::TextHtml));
    // It takes any text at all.
    parsed.ok().and_then(|document| document.body()?.text_content()).unwrap_or_default()
}
