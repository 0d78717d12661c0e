//! The methods of [`Client`] that send HTTP requests.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response};
use url::Url;

use crate::{
    http_exchange::body::OutgoingBody,
    requests::{
        http::{RequestError, Requester, ResponseBody},
        oblivious::ObliviousError,
    },
};

use super::Client;

impl Client {
    /// Sends `request` to an exit that performs it. The URL must be absolute.
    ///
    /// The target sees the exit's address instead of the client's. **The exit reads the complete request and
    /// response.** This includes `https` URLs, because TLS ends at the exit. Use [`Self::request_over_stream`] for
    /// content that an exit must not read.
    ///
    /// The exit doesn't see the client's address. This method removes header fields that identify the user. The caller
    /// must leave identifying data out of URL and body. Each request has a separate circuit. Redirects are
    /// returned, not followed.
    ///
    /// # Errors
    /// When no exit offers requests to the host, the exit refuses or fails, or the response is not valid HTTP. A
    /// truncated body ends with an error.
    ///
    /// ```no_run
    /// # async fn example(client: umbel::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use http_body_util::{BodyExt as _, Empty};
    ///
    /// let request = hyper::Request::get("http://example.org/").body(Empty::<bytes::Bytes>::new())?;
    /// let page = client.request(request).await?.into_body().collect().await?.to_bytes();
    /// # Ok(()) }
    /// ```
    pub async fn request<B: OutgoingBody>(&self, request: Request<B>) -> Result<Response<ResponseBody>, RequestError> {
        self.requester().perform(request, Vec::new(), self.isolation).await.map(|performed| performed.response)
    }

    /// Sends `request` over a stream to its target. The URL must be absolute.
    ///
    /// With `https`, the exit sees only the target's host and port, and the number and times of bytes. With `http`, the
    /// exit reads everything. Streams of one handle may share a circuit ([`Self::isolated`]).
    ///
    /// # Errors
    /// When no stream can be opened, the TLS handshake fails, or the response is not valid HTTP.
    pub async fn request_over_stream<B: OutgoingBody>(
        &self,
        request: Request<B>,
    ) -> Result<Response<ResponseBody>, RequestError> {
        self.requester().over_stream(request, self.isolation).await
    }

    /// Encapsulates `request` to the key of the Oblivious HTTP `gateway` (RFC 9458), and sends it to the gateway
    /// through an exit. The gateway performs the request. The request's URL must be absolute.
    ///
    /// The exit sees the gateway and the number of bytes. The gateway sees the request and the exit. Two different
    /// exits fetch the gateway's keys. If the copies differ, the request fails. A `gateway` URL without a path means
    /// `/.well-known/ohttp-gateway` (RFC 9540).
    ///
    /// # Errors
    /// See [`ObliviousError`].
    pub async fn request_over_oblivious_http<B: OutgoingBody>(
        &self,
        gateway: &Url,
        request: Request<B>,
    ) -> Result<Response<Full<Bytes>>, ObliviousError> {
        self.requester().oblivious(gateway, request).await
    }

    pub(super) fn requester(&self) -> Requester<Self> {
        Requester::new(self.clone(), self.shared.tls.clone())
    }
}
