//! Parsers of answers in a native node, by quick-xml, `serde_json` and html5ever.

pub(super) mod entities;
pub(super) mod json;
pub(super) mod xml;
