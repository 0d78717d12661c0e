//! The exit's HTTP service: one request and one response in Binary HTTP (`proto/09-delegated.md` §6).
//!
//! Bodies are forwarded in pieces, concurrently in both directions, with backpressure. A request that the operator
//! doesn't offer is refused before any name is resolved. Other failures have a response too ([`Refusal`]). A truncated
//! response resets the stream, so that the client never accepts the response as complete.

mod allow_list;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use core::time::Duration;
use http_body_util::Empty;
use hyper::{Method, Request, Response, body::Body, header};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    delegated::{HttpOffer, limits::RequestOwner, message::METHODS},
    exit::outbound::{OutboundClient, OutboundError},
    http_exchange::{
        binary::{Content, MessageError, PipedBody, fill, read_request, response_head, write_content},
        body::BodyError,
        fields::{fix_request, fix_response},
        http1::{StreamedBody, target_of},
        refusal::Refusal,
    },
};

pub(crate) use self::allow_list::AllowRule;

/// Cap on bytes of a request that the exit reads, and drops, after the answer.
const MAX_UNUSED_REQUEST_LEN: u64 = 4 * 1024 * 1024;

/// Caps on length and time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HttpCaps {
    /// Maximum bytes of a body, in each direction; 256 MiB.
    pub(crate) max_body_len: u64,
    /// Time limit for a request's head and the first piece of its body; 15 s.
    pub(crate) head_timeout: Duration,
    /// Time limit for a piece of the request to arrive, and for a piece of the response to be sent; 60 s.
    pub(crate) stall_timeout: Duration,
    /// Time limit from REQUEST to the end of the answer; 15 minutes.
    pub(crate) request_timeout: Duration,
}

impl Default for HttpCaps {
    fn default() -> Self {
        Self {
            max_body_len: 256 * 1024 * 1024,
            head_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(15 * 60),
        }
    }
}

/// The requests that an exit performs.
#[derive(Debug)]
pub(crate) enum HttpPolicy {
    /// None.
    None,
    /// Requests that the operator has listed, at any address of the listed hosts.
    Listed(Vec<AllowRule>, OutboundClient),
    /// All requests that the policy allows.
    Open(OutboundClient),
}

/// The HTTP service of an exit.
#[derive(Debug)]
pub(crate) struct Http {
    policy: HttpPolicy,
    caps: HttpCaps,
}

impl Http {
    pub(crate) const fn new(policy: HttpPolicy, caps: HttpCaps) -> Self {
        Self { policy, caps }
    }

    /// The offer for the descriptor.
    pub(crate) fn offer(&self) -> HttpOffer {
        match &self.policy {
            HttpPolicy::None => HttpOffer::None,
            HttpPolicy::Listed(list, _) => HttpOffer::Hosts(allow_list::hosts(list)),
            HttpPolicy::Open(_) => HttpOffer::Open,
        }
    }

    /// Performs the request that arrives over `stream`, if `admit` allows. The admission lasts from the head of a request
    /// that the operator offers to the answer. So a client that sends no head, or a request that is not offered, holds no
    /// admission.
    ///
    /// # Errors
    /// The reason why the request was not performed or not completed. The client receives the reason too, unless the
    /// answer has begun or the stream failed.
    pub(crate) async fn serve<S, A>(
        &self,
        stream: S,
        owner: RequestOwner,
        admit: impl FnOnce() -> Result<A, Refusal> + Send,
    ) -> Result<(), Refusal>
    where
        A: Send,
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let performing = self.perform(owner, admit, &mut reader, &mut writer);
        let outcome = timeout(self.caps.request_timeout, performing).await.unwrap_or(Err(Refusal::ResponseTimedOut))?;
        let _ = writer.shutdown().await;
        // Dropping the stream before the client has finished would reset the stream, and discard the answer in flight.
        let mut unused = reader.take(MAX_UNUSED_REQUEST_LEN);
        let _ = timeout(self.caps.stall_timeout, tokio::io::copy(&mut unused, &mut tokio::io::sink())).await;
        outcome.map_or(Ok(()), Err)
    }

    /// Performs a request. Returns the refusal that the client received instead of the target's answer, if any.
    ///
    /// # Errors
    /// When the client has not received a complete answer or refusal.
    async fn perform<R, W, A>(
        &self,
        owner: RequestOwner,
        admit: impl FnOnce() -> Result<A, Refusal>,
        reader: &mut R,
        writer: &mut W,
    ) -> Result<Option<Refusal>, Refusal>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let reading = timeout(self.caps.head_timeout, read_head(reader, self.caps.max_body_len));
        let read = reading.await.unwrap_or(Err(Refusal::Malformed));
        let (request, first, mut content) = match read {
            Ok(read) => read,
            Err(refusal) => return self.refuse(writer, refusal).await,
        };
        let (request, outbound) = match self.check(request, first.is_some()) {
            Ok(checked) => checked,
            Err(refusal) => return self.refuse(writer, refusal).await,
        };
        let _admitted = match admit() {
            Ok(admitted) => admitted,
            Err(refusal) => return self.refuse(writer, refusal).await,
        };
        let (pipe, body) = PipedBody::new(first);
        let mut uploaded = Ok(());
        let answered = tokio::select! {
            biased;
            answered = async {
                let response = outbound.send(Some(owner), request.map(|()| body)).await?;
                Ok::<_, OutboundError>(self.answer(writer, response).await)
            } => answered,
            never = async {
                uploaded = fill(&mut content, pipe, self.caps.stall_timeout).await;
                core::future::pending().await
            } => never,
        };
        match answered {
            Ok(answered) => answered,
            Err(_) if uploaded == Err(MessageError::TooLarge) => self.refuse(writer, Refusal::RequestTooLarge).await,
            Err(error) => self.refuse(writer, error.into()).await,
        }
    }

    /// The request to send and its sender, if the operator offers the request.
    fn check(&self, mut request: Request<()>, has_body: bool) -> Result<(Request<()>, &OutboundClient), Refusal> {
        let (secure, target) = target_of(request.uri()).ok_or(Refusal::Malformed)?;
        let method = request.method();
        if !METHODS.contains(&method.as_str()) {
            return Err(Refusal::NotOffered);
        }
        let outbound = match &self.policy {
            HttpPolicy::Listed(list, outbound) if list.iter().any(|rule| rule.matches(method, secure, &target)) => {
                outbound
            }
            HttpPolicy::None | HttpPolicy::Listed(..) => return Err(Refusal::NotOffered),
            HttpPolicy::Open(outbound) => outbound,
        };
        if has_body && [Method::GET, Method::HEAD].contains(method) {
            return Err(Refusal::Malformed);
        }
        let length = request.headers_mut().remove(header::CONTENT_LENGTH);
        fix_request(request.headers_mut());
        if let Some(length) = length.filter(|_| has_body) {
            request.headers_mut().insert(header::CONTENT_LENGTH, length);
        }
        Ok((request, outbound))
    }

    async fn refuse(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        refusal: Refusal,
    ) -> Result<Option<Refusal>, Refusal> {
        let head = response_head(&refusal.response()).map_err(|_| Refusal::Misconfigured)?;
        self.write(writer, &head, Empty::<Bytes>::new()).await?;
        Ok(Some(refusal))
    }

    async fn answer(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        mut response: Response<StreamedBody>,
    ) -> Result<Option<Refusal>, Refusal> {
        if response.body().size_hint().lower() > self.caps.max_body_len {
            return self.refuse(writer, Refusal::AnswerTooLarge).await;
        }
        fix_response(response.headers_mut());
        let head = match response_head(&response) {
            Ok(head) => head,
            Err(MessageError::TooLarge) => return self.refuse(writer, Refusal::HeadTooLarge).await,
            Err(_) => return self.refuse(writer, Refusal::NotHttp).await,
        };
        self.write(writer, &head, response.into_body()).await?;
        Ok(None)
    }

    async fn write<B: Body<Error: Into<BodyError>>>(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        head: &[u8],
        body: B,
    ) -> Result<(), Refusal> {
        let written = async {
            timeout(self.caps.stall_timeout, writer.write_all(head)).await.map_err(|_| MessageError::Broken)??;
            write_content(writer, body, self.caps.max_body_len, self.caps.stall_timeout).await
        };
        match written.await {
            Ok(_) => Ok(()),
            Err(MessageError::Source) => Err(Refusal::Broken),
            Err(MessageError::TooLarge) => Err(Refusal::AnswerTooLarge),
            Err(MessageError::Broken | MessageError::Malformed(_)) => Err(Refusal::ClientGone),
        }
    }
}

/// A request's head, the first piece of its body, and the rest of the body.
async fn read_head<R: AsyncRead + Unpin>(
    reader: R,
    cap: u64,
) -> Result<(Request<()>, Option<Bytes>, Content<R>), Refusal> {
    let (request, mut content) = read_request(reader, cap).await.map_err(|error| read_refusal(&error))?;
    let first = content.piece().await.map_err(|error| read_refusal(&error))?;
    Ok((request, first, content))
}

const fn read_refusal(error: &MessageError) -> Refusal {
    match error {
        MessageError::TooLarge => Refusal::RequestTooLarge,
        MessageError::Broken | MessageError::Malformed(_) | MessageError::Source => Refusal::Malformed,
    }
}
