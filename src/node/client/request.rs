//! HTTP requests with the crate.

use std::error::Error;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Body};
use url::Url;

use crate::io::{
    oblivious::ObliviousError,
    request::{RequestError, Requester, ResponseBody},
};

use super::Client;

impl Client {
    /// Has `request`, whose address is absolute, performed by an exit.
    ///
    /// The target sees the exit's address and no more. **The exit sees the request and its response whole**, also of an
    /// `https` address, for it is the exit that speaks TLS with the target; it doesn't see who asks. So send nothing
    /// that tells who you are; fields that would are removed. What an exit must not read goes by
    /// [`Self::request_over_stream`]. Each request has a circuit of its own. Redirects are given back as they come.
    ///
    /// # Errors
    /// When no exit offers it, the exit says why it did not do it, or what comes is no response. A body that breaks off
    /// ends with an error.
    ///
    /// ```no_run
    /// # async fn example(client: umbel::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use http_body_util::{BodyExt as _, Empty};
    ///
    /// let request = hyper::Request::get("http://example.org/").body(Empty::<bytes::Bytes>::new())?;
    /// let page = client.request(request).await?.into_body().collect().await?.to_bytes();
    /// # Ok(()) }
    /// ```
    pub async fn request<B>(&self, request: Request<B>) -> Result<Response<ResponseBody>, RequestError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        self.requester().perform(request, Vec::new(), self.isolation).await.map(|performed| performed.response)
    }

    /// Sends `request`, whose address is absolute, over a stream to its target. With `https` TLS ends here, and the exit
    /// sees the target's host and port and how much is said. Streams of one handle may share a circuit
    /// ([`Self::isolated`]).
    ///
    /// # Errors
    /// When there is no stream, no TLS that proves the target, or what comes is no response.
    pub async fn request_over_stream<B>(&self, request: Request<B>) -> Result<Response<ResponseBody>, RequestError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        self.requester().over_stream(request, self.isolation).await
    }

    /// Has an exit carry `request` sealed to the Oblivious HTTP `gateway` (RFC 9458), which sends it on.
    ///
    /// The exit sees the gateway and how much is said, the gateway the request and the exit. Two different exits fetch
    /// the gateway's keys, which count when both bring the same. A gateway named by its host alone is asked for at its
    /// well-known place.
    ///
    /// # Errors
    /// See [`ObliviousError`].
    pub async fn request_obliviously<B>(
        &self,
        gateway: &Url,
        request: Request<B>,
    ) -> Result<Response<Full<Bytes>>, ObliviousError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        self.requester().oblivious(gateway, request).await
    }

    pub(super) fn requester(&self) -> Requester<Self> {
        Requester::new(self.clone(), self.shared.tls.clone())
    }
}
