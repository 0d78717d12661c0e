//! How an engine says that it takes the exit for a robot.

use crate::delegated::Block;

/// Bytes of a page in which the signs are looked for.
const MOST_BYTES: usize = 64 * 1024;

/// What stands on the pages that ask who one is, in lower case.
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

/// How the engine blocks, if `status` says so, or a page that isn't an answer does.
pub(super) fn by_status(status: u16, body: &[u8]) -> Option<Block> {
    match status {
        401 | 403 | 405 | 503 if asks(body) => Some(Block::Captcha),
        429 => Some(Block::TooManyRequests),
        403 => Some(Block::Forbidden),
        _ => None,
    }
}

/// Whether `body` is a page that asks for a proof of being human.
pub(super) fn asks(body: &[u8]) -> bool {
    let page = body.get(..MOST_BYTES.min(body.len())).unwrap_or_default();
    let page = String::from_utf8_lossy(page).to_ascii_lowercase();
    page.contains('<') && SIGNS.iter().any(|sign| page.contains(sign))
}
