//! Parsers of answers in a process: quick-xml, `serde_json`, html5ever.

pub(super) mod entities;
pub(super) mod json;
pub(super) mod xml;
