//! HTTP requests of the crate's API.

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
    /// Sends `request`, whose URL is absolute, to an exit that performs it.
    ///
    /// The target sees only the exit's address. **The exit reads the complete request and response**, also of an
    /// `https` URL, because the exit is the TLS client. The exit doesn't learn the client's address. So a request must
    /// not identify the user; identifying fields are removed. Use [`Self::request_over_stream`] for content that an
    /// exit must not read. Each request has a separate circuit. Redirects are returned, not followed.
    ///
    /// # Errors
    /// When no exit offers such requests, the exit refuses or fails, or the answer is no valid response. A truncated
    /// body ends with an error.
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

    /// Sends `request`, whose URL is absolute, over a stream to its target. With `https`, TLS ends at the client, and
    /// the exit sees only the target's host and port and the number of bytes. Streams of one handle may share a
    /// circuit ([`Self::isolated`]).
    ///
    /// # Errors
    /// When no stream can be opened, the target fails TLS verification, or the answer is no valid response.
    pub async fn request_over_stream<B: OutgoingBody>(
        &self,
        request: Request<B>,
    ) -> Result<Response<ResponseBody>, RequestError> {
        self.requester().over_stream(request, self.isolation).await
    }

    /// Sends `request` to the Oblivious HTTP `gateway` (RFC 9458), encrypted for it. An exit forwards the request, and
    /// the gateway performs it.
    ///
    /// The exit sees the gateway and the number of bytes. The gateway sees the request and the exit. Two different
    /// exits fetch the gateway's keys, which are used only if both copies are equal. For a gateway given as a host
    /// alone, the well-known path is used.
    ///
    /// # Errors
    /// See [`ObliviousError`].
    pub async fn request_obliviously<B: OutgoingBody>(
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
