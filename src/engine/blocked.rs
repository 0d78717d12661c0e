//! Detects that an engine has blocked the exit as a robot.

use crate::delegated::Block;

/// Bytes of a page that are searched for the signs.
const MAX_BYTES: usize = 64 * 1024;

/// Text of CAPTCHA pages, in lower case.
const SIGNS: &[&str] = &[
    "captcha",
    "cf-challenge",
    "challenge-platform",
    "challenge-form",
    "anomaly-modal",
    "unusual traffic",
    "are you a robot",
    "are you human",
    "not a robot",
    "sorry/index",
];

/// The kind of block, if `status` or a page without an answer indicates one.
pub(super) fn by_status(status: u16, body: &[u8]) -> Option<Block> {
    match status {
        401 | 403 | 405 | 503 if asks(body) => Some(Block::Captcha),
        429 => Some(Block::TooManyRequests),
        403 => Some(Block::Forbidden),
        _ => None,
    }
}

/// Whether `body` is a CAPTCHA page.
pub(super) fn asks(body: &[u8]) -> bool {
    let page = body.get(..MAX_BYTES.min(body.len())).unwrap_or_default();
    let page = String::from_utf8_lossy(page).to_ascii_lowercase();
    page.contains('<') && SIGNS.iter().any(|sign| page.contains(sign))
}
