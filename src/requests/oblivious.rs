//! Oblivious HTTP (RFC 9458): requests sealed to a gateway, which the forwarding exit can't read.
//!
//! The exit sees the gateway and a sealed message. The gateway sees the request and the exit. An exit that fetches the
//! gateway's key configuration could substitute the configuration. Therefore two different exits fetch it, and both
//! copies must be equal. The comparison also detects a gateway that identifies clients by individual keys. Gateway and
//! exits are not trusted: their data is capped and causes no panic. Governed by `proto/09-delegated.md` §7.

#[cfg(test)]
mod tests;

use bytes::{Bytes, BytesMut};
use core::time::Duration;
use http_body_util::{BodyExt as _, Empty, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    header::{self, HeaderValue},
};
use ohttp::{
    ClientRequest, ClientResponse, KeyConfig, SymmetricSuite,
    hpke::{Aead, Kdf},
};
use tokio::time::timeout;
use url::Url;

use crate::{
    base::RelayId,
    connector::Connector,
    delegated::binary_http::{Decoder, Part, known_request},
    http_exchange::{
        binary::{control, fields, response},
        body::{BodyError, OutgoingBody},
        fields::{fix_request, fix_response},
    },
    requests::http::{PerformedRequest, RequestError, Requester, ResponseBody},
};

/// The path of a gateway whose URL has only a host (RFC 9540 §3).
const WELL_KNOWN: &str = "/.well-known/ohttp-gateway";
const KEYS_TYPE: HeaderValue = HeaderValue::from_static("application/ohttp-keys");
const REQUEST_TYPE: HeaderValue = HeaderValue::from_static("message/ohttp-req");
const RESPONSE_TYPE: HeaderValue = HeaderValue::from_static("message/ohttp-res");

/// Maximum bytes of a gateway's key configurations.
const MAX_KEYS: usize = 16 * 1024;
/// Maximum bytes of a request's content.
const MAX_REQUEST: usize = 1024 * 1024;
/// Maximum bytes of a sealed response.
const MAX_RESPONSE: usize = 16 * 1024 * 1024;
/// Requests are padded to a multiple of this number of bytes, so that their length reveals little to the exit.
const PADDING_UNIT: usize = 1024;

/// Timeouts of complete transfers. Progress doesn't extend a timeout, because partial data is useless.
#[derive(Clone, Copy, Debug)]
struct TransferTimeouts {
    /// Timeout of a fetch of the keys by one exit. Default 1 min.
    keys: Duration,
    /// Timeout of the sealed request with its answer. Default 10 min.
    answer: Duration,
}

impl Default for TransferTimeouts {
    fn default() -> Self {
        Self { keys: Duration::from_secs(60), answer: Duration::from_secs(10 * 60) }
    }
}

/// The cipher suites that the library supports. A usable key configuration has one of these suites.
const SUITES: [SymmetricSuite; 2] = [
    SymmetricSuite::new(Kdf::HkdfSha256, Aead::ChaCha20Poly1305),
    SymmetricSuite::new(Kdf::HkdfSha256, Aead::Aes128Gcm),
];

/// The reason why an oblivious request has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObliviousError {
    /// A request to the gateway through an exit failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// There is no second exit to compare the gateway's keys.
    #[error("only one exit can reach the gateway, so its keys can't be compared")]
    NoSecondExit,
    /// Two exits returned different keys.
    #[error(
        "two exits returned different keys of the gateway: one exit falsifies them, or the gateway uses a key per client"
    )]
    KeysDiffer,
    /// The key configuration is malformed or has no supported key.
    #[error("the gateway has no supported key")]
    Keys,
    /// The gateway's answer is neither key configurations nor an Oblivious HTTP response, as requested.
    #[error("the gateway answered with status {0} instead of an oblivious response")]
    Gateway(StatusCode),
    /// The sealed answer can't be decrypted or decoded.
    #[error("the gateway's answer can't be decrypted")]
    Sealed,
    /// The content of the request or the response exceeds its cap.
    #[error("the body is too large for an oblivious request")]
    TooLarge,
}

impl<C: Connector> Requester<C> {
    /// Seals `request` to `gateway`, sends it, and returns the decrypted response. The URL of `request` must be
    /// absolute.
    ///
    /// # Errors
    /// See [`ObliviousError`].
    pub(crate) async fn oblivious<B: OutgoingBody>(
        &self,
        gateway: &Url,
        request: Request<B>,
    ) -> Result<Response<Full<Bytes>>, ObliviousError> {
        self.oblivious_within(gateway, request, TransferTimeouts::default()).await
    }

    async fn oblivious_within<B: OutgoingBody>(
        &self,
        gateway: &Url,
        request: Request<B>,
        timeouts: TransferTimeouts,
    ) -> Result<Response<Full<Bytes>>, ObliviousError> {
        let timed_out = |_| ObliviousError::from(RequestError::TimedOut);
        let gateway = gateway_uri(gateway).ok_or(RequestError::Address)?;
        let (head, body) = request.into_parts();
        let body = Limited::new(body, MAX_REQUEST).collect().await.map_err(too_large_or(RequestError::Body))?;
        let message = encode(&Request::from_parts(head, body.to_bytes()))?;
        let (keys, first_exit) =
            timeout(timeouts.keys, self.fetch_keys(&gateway, Vec::new())).await.map_err(timed_out)??;
        let second = timeout(timeouts.keys, self.fetch_keys(&gateway, vec![first_exit])).await.map_err(timed_out)?;
        let (second_keys, _) = second.map_err(|error| match error {
            ObliviousError::Request(RequestError::NoExit) => ObliviousError::NoSecondExit,
            error => error,
        })?;
        if keys != second_keys {
            return Err(ObliviousError::KeysDiffer);
        }
        let (sealed, opener) = seal(&keys, &message)?;
        timeout(timeouts.answer, self.send_sealed(gateway, sealed, opener)).await.map_err(timed_out)?
    }

    /// Fetches the gateway's key configurations by an exit that isn't in `excluded_exits`. Returns both.
    async fn fetch_keys(
        &self,
        gateway: &Uri,
        excluded_exits: Vec<RelayId>,
    ) -> Result<(Bytes, RelayId), ObliviousError> {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = gateway.clone();
        request.headers_mut().insert(header::ACCEPT, KEYS_TYPE);
        let PerformedRequest { response, path } =
            self.perform(request, excluded_exits.clone(), self.new_isolation()).await?;
        let exit = path.last().map(|hop| hop.relay).ok_or(ObliviousError::NoSecondExit)?;
        // The connector excludes these exits already. The comparison of keys depends on the exclusion, so it is checked
        // again.
        if excluded_exits.contains(&exit) {
            return Err(ObliviousError::NoSecondExit);
        }
        Ok((read_content(response, &KEYS_TYPE, MAX_KEYS).await?, exit))
    }

    /// Sends a sealed message to the gateway, and opens the gateway's answer.
    async fn send_sealed(
        &self,
        gateway: Uri,
        sealed: Vec<u8>,
        opener: ClientResponse,
    ) -> Result<Response<Full<Bytes>>, ObliviousError> {
        let mut request = Request::new(Full::<Bytes>::from(sealed));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = gateway;
        request.headers_mut().insert(header::CONTENT_TYPE, REQUEST_TYPE);
        let PerformedRequest { response, .. } = self.perform(request, Vec::new(), self.new_isolation()).await?;
        let sealed = read_content(response, &RESPONSE_TYPE, MAX_RESPONSE).await?;
        let opened = opener.decapsulate(&sealed).map_err(|_| ObliviousError::Sealed)?;
        decode(opened).ok_or(ObliviousError::Sealed)
    }
}

/// The URI of a gateway, with [`WELL_KNOWN`] in place of an empty path.
fn gateway_uri(gateway: &Url) -> Option<Uri> {
    let url = if gateway.path() == "/" { gateway.join(WELL_KNOWN).ok()? } else { gateway.clone() };
    url.as_str().parse().ok()
}

/// Reads the complete content of a response, at most `cap` bytes. The response must have status 200 and `content_type`.
async fn read_content(
    response: Response<ResponseBody>,
    content_type: &HeaderValue,
    cap: usize,
) -> Result<Bytes, ObliviousError> {
    if response.status() != StatusCode::OK || response.headers().get(header::CONTENT_TYPE) != Some(content_type) {
        return Err(ObliviousError::Gateway(response.status()));
    }
    let body = Limited::new(response.into_body(), cap).collect().await.map_err(too_large_or(RequestError::Broken))?;
    Ok(body.to_bytes())
}

fn too_large_or(otherwise: RequestError) -> impl Fn(BodyError) -> ObliviousError {
    move |error| if error.is::<LengthLimitError>() { ObliviousError::TooLarge } else { otherwise.into() }
}

/// Seals `message` to the first supported configuration of `keys`. Returns the sealed message, and the state that opens
/// its answer.
pub(crate) fn seal(keys: &[u8], message: &[u8]) -> Result<(Vec<u8>, ClientResponse), ObliviousError> {
    let configurations = KeyConfig::decode_list(keys).map_err(|_| ObliviousError::Keys)?;
    // The list may contain configurations without a supported suite, for which the library returns an error.
    let is_usable = |keys: &KeyConfig| SUITES.into_iter().any(|suite| keys.select(suite).is_ok());
    let mut chosen = configurations.into_iter().find(is_usable).ok_or(ObliviousError::Keys)?;
    let sealing = ClientRequest::from_config(&mut chosen).map_err(|_| ObliviousError::Keys)?;
    sealing.encapsulate(message).map_err(|_| ObliviousError::Keys)
}

/// Encodes a request in Binary HTTP, padded with zeros (RFC 9292 §3.8).
fn encode(request: &Request<Bytes>) -> Result<Vec<u8>, ObliviousError> {
    let control = control(request).ok_or(RequestError::Address)?;
    let mut headers = request.headers().clone();
    headers.remove(header::CONTENT_LENGTH);
    fix_request(&mut headers);
    let encoded = known_request(control, fields(&headers), request.body());
    let mut bytes = encoded.map_err(|_| ObliviousError::TooLarge)?;
    bytes.resize(bytes.len().next_multiple_of(PADDING_UNIT), 0);
    Ok(bytes)
}

/// Decodes a response in Binary HTTP of known or indeterminate length.
pub(crate) fn decode(bytes: Vec<u8>) -> Option<Response<Full<Bytes>>> {
    let mut decoder = Decoder::sealed_response(u64::MAX);
    *decoder.buffer_mut() = BytesMut::from(Bytes::from(bytes));
    let Some(Part::Head(head)) = decoder.poll_part(true).ok()? else { return None };
    let mut response = response(&head).ok()?;
    let mut body = BytesMut::new();
    while let Some(Part::Content(piece)) = decoder.poll_part(true).ok()? {
        body.extend_from_slice(&piece);
    }
    fix_response(response.headers_mut());
    Some(response.map(|()| Full::from(body.freeze())))
}
