//! Detects that an engine has blocked the exit as a robot.

use crate::delegated::Block;

/// Maximum bytes of an answer that are searched.
const MAX_SEARCHED_LEN: usize = 64 * 1024;

/// Texts of CAPTCHA pages, in lower case.
const CAPTCHA_TEXTS: &[&str] = &[
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

/// The kind of block that `status` and `body` indicate, if any.
pub(super) fn by_status(status: u16, body: &[u8]) -> Option<Block> {
    match status {
        401 | 403 | 405 | 503 if is_captcha(body) => Some(Block::Captcha),
        429 => Some(Block::TooManyRequests),
        403 => Some(Block::Forbidden),
        _ => None,
    }
}

/// Whether `body` looks like a CAPTCHA page.
pub(super) fn is_captcha(body: &[u8]) -> bool {
    let page = body.get(..MAX_SEARCHED_LEN.min(body.len())).unwrap_or_default();
    let page = String::from_utf8_lossy(page).to_ascii_lowercase();
    page.contains('<') && CAPTCHA_TEXTS.iter().any(|text| page.contains(text))
}
