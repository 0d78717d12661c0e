//! Parsers of answers in a page: the browser's, so the module contains none.
//!
//! The browser tests check that results equal those of [`super::native`]. Memory is bounded by the input: XML has no
//! custom entities, and HTML has no tags, because a page can't bound a tree of hostile HTML.

pub(super) mod entities;
pub(super) mod json;
pub(super) mod xml;
