//! Parsers of answers in a process, by quick-xml, `serde_json` and html5ever.

pub(super) mod entities;
pub(super) mod json;
pub(super) mod xml;
