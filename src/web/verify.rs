//! Comparison of the pages of a server with the manifest of a release.
//!
//! The result is valid for one server, time and client, because a server may send other clients other files. Answers
//! are capped in length and time. Redirects are not followed, because only the given URL is verified.

use core::{fmt, time::Duration};

use data_encoding::HEXLOWER;
use reqwest::{Client, Response, StatusCode, Url, header};

use super::{NetworkDescription, manifest::Manifest, paths};
use crate::{
    crypto::sha256,
    http_exchange::client::{direct_client, innermost_cause, read_at_most},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// Time limit of one file.
const FILE_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum bytes of a file without content encoding.
const MAX_FILE: usize = 8 << 20;
/// Maximum bytes of the network's description.
const MAX_NETWORK: usize = 256 << 10;
/// Header fields by which a browser loads other content in addition to the page or in its place.
const LOADING_FIELDS: [&str; 2] = ["link", "refresh"];

/// A difference from the manifest.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Difference {
    /// The requested path.
    pub(crate) path: String,
    pub(crate) kind: Mismatch,
}

/// The kind of a difference.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Mismatch {
    /// The content has another hash: this one.
    Content([u8; 32]),
    /// The HTTP status code is not 200, for example that of a redirect.
    Status(u16),
    /// The file exceeds the maximum length.
    TooLong,
    /// The file is identical, but the answer has one of [`LOADING_FIELDS`].
    LoadingField(&'static str),
    /// The network description is missing or invalid, or has other authorities than expected.
    Network,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.kind {
            Mismatch::Content(hash) => write!(f, "{path}: the contents differ; SHA-256 {}", HEXLOWER.encode(hash)),
            Mismatch::Status(status) => write!(f, "{path}: HTTP status {status} instead of the file"),
            Mismatch::TooLong => write!(f, "{path}: longer than the maximum for a file"),
            Mismatch::LoadingField(field) => write!(
                f,
                "{path}: identical, but with a header field \"{field}\" that makes browsers show or load something else"
            ),
            Mismatch::Network => write!(f, "{path}: no valid description of the network with the expected authorities"),
        }
    }
}

/// The result of a verification.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) differences: Vec<Difference>,
    /// The network that the pages would join; `None` if the server has no valid description of a network.
    pub(crate) network: Option<NetworkDescription>,
}

/// The reason why the verification failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    #[error("\"{0}\" is not a URL of pages; write it as in https://umbel.example/")]
    Url(String),
    #[error("can't create the HTTP client: {0}")]
    Client(String),
    #[error("the server can't be reached: {0}")]
    Unreachable(String),
}

impl From<reqwest::Error> for VerifyError {
    fn from(error: reqwest::Error) -> Self {
        Self::Unreachable(innermost_cause(error))
    }
}

/// The base URL of the pages. `text` is this URL, or the URL of a file of `manifest` directly below this URL.
///
/// # Errors
/// When `text` is not an `http` or `https` URL.
pub(crate) fn base_url(text: &str, manifest: &Manifest) -> Result<Url, VerifyError> {
    let bad = || VerifyError::Url(text.to_owned());
    let mut url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(bad)?;
    url.set_query(None);
    url.set_fragment(None);
    let last = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default().to_owned();
    let is_file = manifest.files().any(|(name, _)| paths(name).any(|path| path == last));
    let mut parts = url.path_segments_mut().map_err(|()| bad())?;
    if is_file {
        parts.pop();
    }
    parts.pop_if_empty().push("");
    drop(parts);
    Ok(url)
}

/// Fetches every file of `manifest` from `base` and compares its hash. Unless `authorities` is empty, the network
/// must have exactly these authorities.
///
/// # Errors
/// When the server can't be reached, or a transfer is truncated.
pub(crate) async fn verify(base: &Url, manifest: &Manifest, authorities: &[String]) -> Result<Outcome, VerifyError> {
    let client = direct_client(CONNECT_TIMEOUT, READ_TIMEOUT, FILE_TIMEOUT)
        .map_err(|error| VerifyError::Client(error.to_string()))?;
    let mut differences = Vec::new();
    for (name, hash) in manifest.files() {
        let mut found = false;
        let mut missing = None;
        for path in paths(name) {
            match compare(&client, base, path, hash).await? {
                None => found = true,
                // A server may have a page with or without the suffix. One of the two paths is sufficient, but a server
                // with both must have the same content at both.
                Some(difference) if difference.kind == Mismatch::Status(404) => missing = missing.or(Some(difference)),
                Some(difference) => {
                    found = true;
                    differences.push(difference);
                }
            }
        }
        differences.extend(missing.filter(|_| !found));
    }
    let network = network(&client, base).await?;
    let has_authorities = |network: &NetworkDescription| {
        let sorted = |names: &[String]| {
            let mut names: Vec<_> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
            names.sort();
            names
        };
        sorted(&network.authorities) == sorted(authorities)
    };
    if !authorities.is_empty() && !network.as_ref().is_some_and(has_authorities) {
        differences.push(Difference { path: "umbel.json".to_owned(), kind: Mismatch::Network });
    }
    Ok(Outcome { differences, network })
}

async fn compare(client: &Client, base: &Url, path: &str, hash: &[u8; 32]) -> Result<Option<Difference>, VerifyError> {
    let differs = |kind| Ok(Some(Difference { path: path.to_owned(), kind }));
    let response = get(client, base, path).await?;
    if response.status() != StatusCode::OK {
        return differs(Mismatch::Status(response.status().as_u16()));
    }
    let loading = LOADING_FIELDS.into_iter().find(|field| response.headers().contains_key(*field));
    let Some(bytes) = read_at_most(response, MAX_FILE).await? else { return differs(Mismatch::TooLong) };
    let found = sha256(&bytes);
    if found != *hash {
        return differs(Mismatch::Content(found));
    }
    match loading {
        Some(field) => differs(Mismatch::LoadingField(field)),
        None => Ok(None),
    }
}

async fn network(client: &Client, base: &Url) -> Result<Option<NetworkDescription>, VerifyError> {
    let response = get(client, base, "umbel.json").await?;
    if response.status() != StatusCode::OK {
        return Ok(None);
    }
    let bytes = read_at_most(response, MAX_NETWORK).await?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

async fn get(client: &Client, base: &Url, path: &str) -> Result<Response, VerifyError> {
    let url = base.join(path).map_err(|_| VerifyError::Url(base.to_string()))?;
    // An intermediate cache may have another version than the server.
    Ok(client.get(url).header(header::CACHE_CONTROL, "no-cache").send().await?)
}
