//! Texts of the HTTP client's errors.

use std::error::Error;

/// The innermost cause of `error`, the most specific one, without the URL.
pub(crate) fn innermost_cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
