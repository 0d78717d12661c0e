//! Parts common to the HTTP clients: the client itself, texts of errors, and bodies with a cap.

use std::{error::Error, time::Duration};

use reqwest::{Client, Response, redirect};

/// A client that connects only to the hosts of its requests: a proxy of the environment or a redirect would reveal the
/// requests to other hosts. `connect` and `read` limit the waits for a connection and for bytes, `total` a request.
///
/// # Errors
/// When TLS can't be configured.
pub(crate) fn direct_client(connect: Duration, read: Duration, total: Duration) -> reqwest::Result<Client> {
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .connect_timeout(connect)
        .read_timeout(read)
        .timeout(total)
        .build()
}

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
