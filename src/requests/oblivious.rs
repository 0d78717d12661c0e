//! Oblivious HTTP (RFC 9458): requests sealed to a gateway, so that the exit that forwards them can't read them.
//!
//! The exit sees the gateway and a sealed message; the gateway sees the request and the exit. The weak point is the
//! gateway's key: the exit that fetches the key configuration could substitute another. So two different exits fetch
//! it, and it is used only if both copies are equal. The same test detects a gateway that identifies clients by
//! individual keys. Gateway and exits are not trusted: their data is capped and never makes the decoders panic.
//! Governed by `proto/09-delegated.md`, "Oblivious HTTP".

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
    requests::http::{Performed, RequestError, Requester, ResponseBody},
};

/// The path of a gateway whose URL has only a host (RFC 9540 §3).
const WELL_KNOWN: &str = "/.well-known/ohttp-gateway";
const KEYS: HeaderValue = HeaderValue::from_static("application/ohttp-keys");
const REQUEST: HeaderValue = HeaderValue::from_static("message/ohttp-req");
const RESPONSE: HeaderValue = HeaderValue::from_static("message/ohttp-res");

/// Maximum bytes of a key configuration, of a request's body and of a sealed response.
const MAX_KEYS: usize = 16 * 1024;
const MAX_REQUEST: usize = 1024 * 1024;
const MAX_RESPONSE: usize = 16 * 1024 * 1024;
/// Requests are padded to a multiple of this many bytes, so that the length reveals little to the exit.
const BUCKET: usize = 1024;

/// Time limits for a complete transfer. Partial data is useless, so slow transfers get no extension.
#[derive(Clone, Copy, Debug)]
struct TransferTimeouts {
    /// For fetching the keys through one exit; a minute.
    keys: Duration,
    /// For the sealed answer; ten minutes.
    answer: Duration,
}

impl Default for TransferTimeouts {
    fn default() -> Self {
        Self { keys: Duration::from_secs(60), answer: Duration::from_secs(10 * 60) }
    }
}

/// Cipher suites, one of which a configuration must offer; the library supports no others.
const SUITES: [SymmetricSuite; 2] = [
    SymmetricSuite::new(Kdf::HkdfSha256, Aead::ChaCha20Poly1305),
    SymmetricSuite::new(Kdf::HkdfSha256, Aead::Aes128Gcm),
];

/// The reason why an oblivious request has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObliviousError {
    /// The exit did not forward the request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// There is no second exit for the comparison of the gateway's keys.
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
    /// The gateway's answer is no Oblivious HTTP response.
    #[error("the gateway answered with status {0} instead of an oblivious response")]
    Gateway(StatusCode),
    /// The sealed answer can't be decrypted or decoded.
    #[error("the gateway's answer can't be decrypted")]
    Sealed,
    /// The request's or the response's body is too large for one sealed message.
    #[error("the body is too large for an oblivious request")]
    TooLarge,
}

impl<C: Connector> Requester<C> {
    /// Sends `request`, whose URL must be absolute, sealed to `gateway`; returns the decrypted response.
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
        limits: TransferTimeouts,
    ) -> Result<Response<Full<Bytes>>, ObliviousError> {
        let late = |_| ObliviousError::from(RequestError::Silent);
        let gateway = address(gateway).ok_or(RequestError::Address)?;
        let (head, body) = request.into_parts();
        let body = Limited::new(body, MAX_REQUEST).collect().await.map_err(too_large_or(RequestError::Body))?;
        let message = encode(&Request::from_parts(head, body.to_bytes()))?;
        let (keys, first) = timeout(limits.keys, self.keys(&gateway, Vec::new())).await.map_err(late)??;
        let again = timeout(limits.keys, self.keys(&gateway, vec![first])).await.map_err(late)?;
        let (again, _) = again.map_err(|error| match error {
            ObliviousError::Request(RequestError::NoExit) => ObliviousError::NoSecondExit,
            error => error,
        })?;
        if keys != again {
            return Err(ObliviousError::KeysDiffer);
        }
        let (sealed, opener) = seal(&keys, &message)?;
        timeout(limits.answer, self.carry(gateway, sealed, opener)).await.map_err(late)?
    }

    /// The gateway's key configurations and the exit that fetched them, which isn't in `not_by`.
    async fn keys(&self, gateway: &Uri, not_by: Vec<RelayId>) -> Result<(Bytes, RelayId), ObliviousError> {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = gateway.clone();
        request.headers_mut().insert(header::ACCEPT, KEYS);
        let Performed { response, path } = self.perform(request, not_by.clone(), self.isolation()).await?;
        let exit = path.last().map(|hop| hop.relay).ok_or(ObliviousError::NoSecondExit)?;
        // The connector was to exclude these exits. Checked again, because the comparison depends on it.
        if not_by.contains(&exit) {
            return Err(ObliviousError::NoSecondExit);
        }
        Ok((whole(response, &KEYS, MAX_KEYS).await?, exit))
    }

    async fn carry(
        &self,
        gateway: Uri,
        sealed: Vec<u8>,
        opener: ClientResponse,
    ) -> Result<Response<Full<Bytes>>, ObliviousError> {
        let mut request = Request::new(Full::<Bytes>::from(sealed));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = gateway;
        request.headers_mut().insert(header::CONTENT_TYPE, REQUEST);
        let Performed { response, .. } = self.perform(request, Vec::new(), self.isolation()).await?;
        let sealed = whole(response, &RESPONSE, MAX_RESPONSE).await?;
        let opened = opener.decapsulate(&sealed).map_err(|_| ObliviousError::Sealed)?;
        decode(opened).ok_or(ObliviousError::Sealed)
    }
}

fn address(gateway: &Url) -> Option<Uri> {
    let whole = if gateway.path() == "/" { gateway.join(WELL_KNOWN).ok()? } else { gateway.clone() };
    whole.as_str().parse().ok()
}

/// The body of a response with status 200 and content type `kind`.
async fn whole(response: Response<ResponseBody>, kind: &HeaderValue, cap: usize) -> Result<Bytes, ObliviousError> {
    if response.status() != StatusCode::OK || response.headers().get(header::CONTENT_TYPE) != Some(kind) {
        return Err(ObliviousError::Gateway(response.status()));
    }
    let body = Limited::new(response.into_body(), cap).collect().await.map_err(too_large_or(RequestError::Broken))?;
    Ok(body.to_bytes())
}

fn too_large_or(otherwise: RequestError) -> impl Fn(BodyError) -> ObliviousError {
    move |error| if error.is::<LengthLimitError>() { ObliviousError::TooLarge } else { otherwise.into() }
}

/// `message` sealed to the first supported key of `keys`, and the state that opens the answer.
pub(crate) fn seal(keys: &[u8], message: &[u8]) -> Result<(Vec<u8>, ClientResponse), ObliviousError> {
    let configurations = KeyConfig::decode_list(keys).map_err(|_| ObliviousError::Keys)?;
    // The library requires a configuration with a supported suite; the list may contain others.
    let usable = |keys: &KeyConfig| SUITES.into_iter().any(|suite| keys.select(suite).is_ok());
    let mut chosen = configurations.into_iter().find(usable).ok_or(ObliviousError::Keys)?;
    let sealing = ClientRequest::from_config(&mut chosen).map_err(|_| ObliviousError::Keys)?;
    sealing.encapsulate(message).map_err(|_| ObliviousError::Keys)
}

/// The request in Binary HTTP, padded with zeros (RFC 9292 §3.8).
fn encode(request: &Request<Bytes>) -> Result<Vec<u8>, ObliviousError> {
    let control = control(request).ok_or(RequestError::Address)?;
    let mut headers = request.headers().clone();
    headers.remove(header::CONTENT_LENGTH);
    fix_request(&mut headers);
    let encoded = known_request(control, fields(&headers), request.body());
    let mut bytes = encoded.map_err(|_| ObliviousError::TooLarge)?;
    bytes.resize(bytes.len().next_multiple_of(BUCKET), 0);
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
