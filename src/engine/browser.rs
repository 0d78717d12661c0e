//! Parsers of answers in a page, by the browser's own parsers, which don't add to the download.
//!
//! The browser tests check that results equal those of [`super::native`]. The length of the input bounds the memory:
//! XML has no custom entities, and HTML is parsed only for entities, without tags. A page can't bound a tree of hostile
//! HTML.

pub(super) mod entities;
pub(super) mod json;
pub(super) mod xml;
