//! The documents that a directory serves, each compressed once.

use std::io::{self, Write as _};

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use flate2::{Compression, write::GzEncoder};
use tokio::{sync::watch, task::spawn_blocking};

use crate::{directory_http::tag::entity_tag, io::content_coding::is_accepted};

/// The media type of documents.
pub(super) const DOCUMENT: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/x-protobuf")];
/// Levels of compression: more work than for one answer, because each document is compressed once.
const ZSTD_LEVEL: i32 = 9;
const GZIP_LEVEL: Compression = Compression::new(6);

/// The current document of one kind.
pub(super) struct ServedDocument(watch::Sender<Option<CompressedDocument>>);

/// A document, with its compressed forms.
#[derive(Clone)]
struct CompressedDocument {
    whole: Bytes,
    zstd: Option<Bytes>,
    gzip: Option<Bytes>,
    etag: HeaderValue,
}

impl ServedDocument {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Compresses and serves these bytes of a document with this digest, in place of the last.
    pub(super) async fn set(&self, document: Vec<u8>, digest: [u8; 32]) {
        let Ok(etag) = entity_tag(&digest) else { return tracing::error!("can't compute an entity tag") };
        match spawn_blocking(move || CompressedDocument::new(document, etag)).await {
            Ok(served) => _ = self.0.send_replace(Some(served)),
            Err(error) => tracing::error!(%error, "can't compress a document; not serving it"),
        }
    }

    /// The answer to a GET with these header fields; 404 with the words `none_yet` before the first document.
    pub(super) fn answer(&self, asked: &HeaderMap, none_yet: &'static str) -> Response {
        let Some(served) = self.0.borrow().clone() else { return (StatusCode::NOT_FOUND, none_yet).into_response() };
        let fields = [
            (header::ETAG, served.etag.clone()),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::VARY, HeaderValue::from_static("accept-encoding")),
        ];
        if asked.get_all(header::IF_NONE_MATCH).iter().any(|value| names(value, &served.etag)) {
            return (StatusCode::NOT_MODIFIED, fields).into_response();
        }
        let packed = [("zstd", served.zstd), ("gzip", served.gzip)];
        let packed = packed
            .into_iter()
            .find_map(|(coding, bytes)| Some((coding, bytes?)).filter(|_| is_accepted(asked, coding)));
        match packed {
            Some((coding, bytes)) => (fields, DOCUMENT, [(header::CONTENT_ENCODING, coding)], bytes).into_response(),
            None => (fields, DOCUMENT, served.whole).into_response(),
        }
    }
}

impl CompressedDocument {
    fn new(document: Vec<u8>, etag: HeaderValue) -> Self {
        let shorter = |packed: io::Result<Vec<u8>>| {
            let packed = packed.inspect_err(|error| tracing::warn!(%error, "can't compress a document")).ok()?;
            Some(Bytes::from(packed)).filter(|packed| packed.len() < document.len())
        };
        let zstd = shorter(zstd::encode_all(document.as_slice(), ZSTD_LEVEL));
        let gzip = shorter(gzip(&document));
        Self { whole: document.into(), zstd, gzip, etag }
    }
}

fn gzip(document: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), GZIP_LEVEL);
    encoder.write_all(document)?;
    encoder.finish()
}

/// Whether an `If-None-Match` value (RFC 9110 §13.1.2) contains `etag`, compared weakly.
fn names(value: &HeaderValue, etag: &HeaderValue) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let (Ok(value), Ok(etag)) = (value.to_str(), etag.to_str()) else { return false };
    value.trim() == "*" || value.split(',').any(|tag| opaque(tag) == opaque(etag))
}
