//! What takes answers apart in a page: the browser's own parsers, which every visitor has already.
//!
//! The same answers as [`super::native`], by the browser's tests. None of what is used here grows beyond what goes in: XML has
//! no entities of its own, and HTML comes without tags, for a tree of hostile HTML can't be bounded from here.

pub(super) mod entities;
pub(super) mod json;
pub(super) mod xml;
