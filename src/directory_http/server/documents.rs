//! The documents that a directory serves, each compressed once.

use std::io::{self, Write as _};

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use flate2::{Compression, write::GzEncoder};
use tokio::{sync::watch, task::spawn_blocking};

use crate::{
    directory::{DocumentKind, SignedDocument},
    directory_http::tag::entity_tag,
    http_exchange::content_coding::is_accepted,
};

/// The header field with the media type of documents.
pub(super) const DOCUMENT_TYPE: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/x-protobuf")];
/// Compression level. Higher than for responses that are compressed on each request, because a document is compressed
/// once and served many times.
const ZSTD_LEVEL: i32 = 9;
/// As for [`ZSTD_LEVEL`].
const GZIP_LEVEL: Compression = Compression::new(6);

/// The current document of one kind.
pub(super) struct CurrentDocument(watch::Sender<Option<CompressedDocument>>);

/// A document, with its compressed forms if they are shorter.
#[derive(Clone)]
struct CompressedDocument {
    plain: Bytes,
    zstd: Option<Bytes>,
    gzip: Option<Bytes>,
    etag: HeaderValue,
}

impl CurrentDocument {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Compresses `document` and replaces the current document with it.
    pub(super) async fn replace<B: DocumentKind>(&self, document: SignedDocument<B>) {
        let Ok(etag) = entity_tag(&document.digest()) else {
            return tracing::error!("can't compute an entity tag; still serving the previous document");
        };
        let bytes = document.into_bytes();
        match spawn_blocking(move || CompressedDocument::new(bytes, etag)).await {
            Ok(compressed) => _ = self.0.send_replace(Some(compressed)),
            Err(error) => tracing::error!(%error, "the compression task failed; still serving the previous document"),
        }
    }

    /// The answer to a GET with the header fields `request_headers`; before the first document, 404 with the text
    /// `not_found_text`.
    pub(super) fn answer(&self, request_headers: &HeaderMap, not_found_text: &'static str) -> Response {
        let Some(current) = self.0.borrow().clone() else {
            return (StatusCode::NOT_FOUND, not_found_text).into_response();
        };
        let fields = [
            (header::ETAG, current.etag.clone()),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::VARY, HeaderValue::from_static("accept-encoding")),
        ];
        if request_headers.get_all(header::IF_NONE_MATCH).iter().any(|value| matches_tag(value, &current.etag)) {
            return (StatusCode::NOT_MODIFIED, fields).into_response();
        }
        let compressed = [("zstd", current.zstd), ("gzip", current.gzip)];
        let accepted = compressed
            .into_iter()
            .find_map(|(coding, bytes)| Some((coding, bytes?)).filter(|_| is_accepted(request_headers, coding)));
        match accepted {
            Some((coding, bytes)) => {
                (fields, DOCUMENT_TYPE, [(header::CONTENT_ENCODING, coding)], bytes).into_response()
            }
            None => (fields, DOCUMENT_TYPE, current.plain).into_response(),
        }
    }
}

impl CompressedDocument {
    fn new(document: Vec<u8>, etag: HeaderValue) -> Self {
        let if_shorter = |coding: &str, compressed: io::Result<Vec<u8>>| {
            let warn = |error: &io::Error| {
                tracing::warn!(coding, %error, "can't compress a document; serving it without this coding");
            };
            let compressed = compressed.inspect_err(warn).ok()?;
            Some(Bytes::from(compressed)).filter(|compressed| compressed.len() < document.len())
        };
        let zstd = if_shorter("zstd", zstd::encode_all(document.as_slice(), ZSTD_LEVEL));
        let gzip = if_shorter("gzip", gzip(&document));
        Self { plain: document.into(), zstd, gzip, etag }
    }
}

fn gzip(document: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), GZIP_LEVEL);
    encoder.write_all(document)?;
    encoder.finish()
}

/// Whether an `If-None-Match` value (RFC 9110 §13.1.2) is `*` or lists `etag`, compared weakly.
fn matches_tag(value: &HeaderValue, etag: &HeaderValue) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let (Ok(value), Ok(etag)) = (value.to_str(), etag.to_str()) else { return false };
    value.trim() == "*" || value.split(',').any(|tag| opaque(tag) == opaque(etag))
}
