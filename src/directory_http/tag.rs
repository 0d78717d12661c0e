//! Entity tags of documents, computed from the digest of their signed part.
//!
//! A client computes the tag of its document. It never sends a tag that a directory chose: by such a tag the directory
//! could recognise the client at another address (`proto/07-directory.md` §7).

use data_encoding::HEXLOWER;
use reqwest::header::{HeaderValue, InvalidHeaderValue};

/// The entity tag of the document with this digest. The tag is weak, because all compressed forms have the same tag.
///
/// # Errors
/// Never: the tag consists of visible characters.
pub(super) fn entity_tag(digest: &[u8; 32]) -> Result<HeaderValue, InvalidHeaderValue> {
    HeaderValue::try_from(format!("W/\"{}\"", HEXLOWER.encode(digest)))
}
