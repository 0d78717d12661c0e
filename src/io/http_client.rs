//! Parts common to the HTTP clients: texts of errors, and bodies with a cap.

use std::error::Error;

use reqwest::Response;

/// The innermost and most specific cause of `error`, without the URL.
pub(crate) fn innermost_cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// The decompressed body; `None` if it is longer than `max_len` bytes.
///
/// # Errors
/// When the body is truncated.
pub(crate) async fn read_at_most(mut response: Response, max_len: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len().saturating_add(chunk.len()) > max_len {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}
