//! Entity tags of documents, computed from the digest of their signed part.
//!
//! A client computes the tag of the document that it holds. It never returns a tag that a directory chose, by which
//! the directory could recognise it at another address (`proto/07-directory.md`, "HTTP").

use data_encoding::HEXLOWER;
use reqwest::header::{HeaderValue, InvalidHeaderValue};

/// The entity tag of the document with this digest. It is weak, because it is the same for every compression.
///
/// # Errors
/// Never: the tag consists of visible characters.
pub(super) fn entity_tag(digest: &[u8; 32]) -> Result<HeaderValue, InvalidHeaderValue> {
    HeaderValue::try_from(format!("W/\"{}\"", HEXLOWER.encode(digest)))
}
