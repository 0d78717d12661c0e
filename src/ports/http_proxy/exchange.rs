//! One request and its response, forwarded between an application and a stream to the target.

use core::{
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Notify,
};

use super::{
    body::{ForwardError, Forwarder, Framing},
    request::RequestHead,
    response::{self, NoResponse, ResponseHead, ResponseLines},
};
use crate::{
    http_exchange::http1::ExchangeError,
    io::stream::{HALF_CLOSED_TIMEOUT, Stream, idle},
};

/// A request as it is forwarded.
pub(super) struct ForwardedRequest<'a> {
    pub(super) head: &'a RequestHead<'a>,
    /// The bytes of the head for the target.
    pub(super) bytes: Vec<u8>,
    pub(super) framing: Framing,
    /// Maximum bytes of the response's head, and of trailers.
    pub(super) max_head_bytes: usize,
}

/// A complete exchange.
#[derive(Clone, Copy)]
pub(super) struct Exchanged {
    /// The application may send another request.
    pub(super) persists: bool,
    /// The stream can carry another request.
    pub(super) is_reusable: bool,
    /// The target has switched to another protocol; the stream carries its bytes.
    pub(super) is_upgraded: bool,
}

/// The reason why an exchange is not complete.
pub(super) enum Incomplete {
    /// The target closed the stream without a byte, and the application got no byte.
    Unanswered,
    /// The exchange failed before the application got a byte.
    Failed(ExchangeError),
    /// The application has failed, or has got a part of the response.
    Cut,
}

/// State that both directions share.
#[derive(Default)]
struct Progress {
    /// The whole request is sent.
    is_sent: AtomicBool,
    sent: Notify,
    /// The application has sent a byte of the body.
    has_body: AtomicBool,
    /// The application has sent all its bytes.
    has_finished: AtomicBool,
    /// The number of reads and writes.
    transfers: AtomicU64,
    /// The application has got a byte.
    is_answered: AtomicBool,
}

/// Sends `request` with its body, which is read from `application`, and forwards the response to `answers`.
///
/// Both directions run concurrently. If the target accepts no more bytes of the request, its response is still read to
/// the end. The time is unlimited, except after the application has finished, as in a splice.
pub(super) async fn exchange<R, W>(
    application: &mut R,
    answers: &mut W,
    stream: &mut Stream,
    request: &ForwardedRequest<'_>,
) -> Result<Exchanged, Incomplete>
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let progress = Progress::default();
    let (reader, writer) = stream.split();
    let mut sending = pin!(send(application, writer, request, &progress));
    let exchanged = {
        let mut receiving = pin!(receive(reader, answers, request, &progress));
        tokio::select! {
            // A response before the failure of a request is complete.
            biased;
            received = &mut receiving => received,
            error = &mut sending => Err(error),
        }
    };
    let exchanged = exchanged.map_err(|incomplete| match progress.is_answered.load(Ordering::Relaxed) {
        true => Incomplete::Cut,
        false => incomplete,
    })?;
    // An application that awaits 100 (Continue) sends no body after another response.
    let awaits_no_body = request.head.expects_continue() && !progress.has_body.load(Ordering::Relaxed);
    if !progress.is_sent.load(Ordering::Relaxed) && !awaits_no_body && !exchanged.is_upgraded {
        // The target may still read the request after its response.
        tokio::select! {
            () = progress.sent.notified() => {}
            _ = &mut sending => {}
            _ = reader.fill_buf() => {}
        }
    }
    Ok(exchanged)
}

/// Sends the request, then watches for the end of the application's bytes. Returns only if the request is incomplete or
/// the application has failed.
async fn send<R, W>(
    application: &mut R,
    writer: &mut W,
    request: &ForwardedRequest<'_>,
    progress: &Progress,
) -> Incomplete
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let head = request.bytes.clone();
    let forwarding = async {
        if request.framing != Framing::Empty {
            writer.write_all(&head).await.map_err(|_| ForwardError::Receiver)?;
            let is_at_end = application.fill_buf().await.map_err(|_| ForwardError::Sender)?.is_empty();
            progress.has_body.store(!is_at_end, Ordering::Relaxed);
        }
        let head = if request.framing == Framing::Empty { head.clone() } else { Vec::new() };
        let forwarder = Forwarder::new(head, application, writer, &progress.transfers, true, request.max_head_bytes);
        forwarder.forward(request.framing).await
    };
    match forwarding.await {
        Ok(()) => {}
        Err(ForwardError::Sender) => return Incomplete::Failed(ExchangeError::RequestBody),
        // The target accepts no more bytes. Its response and its end are read by the other direction.
        Err(ForwardError::Receiver) => core::future::pending().await,
    }
    progress.is_sent.store(true, Ordering::Relaxed);
    progress.sent.notify_one();
    match application.fill_buf().await {
        // The next request waits.
        Ok(bytes) if !bytes.is_empty() => core::future::pending().await,
        Ok(_) => {
            progress.has_finished.store(true, Ordering::Relaxed);
            // An error means that the stream has ended.
            let _ = writer.shutdown().await;
            idle(&progress.transfers, HALF_CLOSED_TIMEOUT, true).await;
            Incomplete::Cut
        }
        Err(_) => Incomplete::Cut,
    }
}

/// Forwards the response, with the interim responses before it.
async fn receive<R, W>(
    reader: &mut R,
    answers: &mut W,
    request: &ForwardedRequest<'_>,
    progress: &Progress,
) -> Result<Exchanged, Incomplete>
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin,
{
    loop {
        let received = response::read_head(reader, request.max_head_bytes).await.map_err(|error| match error {
            NoResponse::Silent => Incomplete::Unanswered,
            NoResponse::Invalid(error) => Incomplete::Failed(error),
        })?;
        let lines = ResponseLines::new(&received);
        drop(received);
        let mut head = ResponseHead::parse(&lines).map_err(Incomplete::Failed)?;
        let is_sent = progress.is_sent.load(Ordering::Relaxed);
        let is_upgraded = head.status == 101;
        if is_upgraded && !(request.head.wants_upgrade() && is_sent) {
            return Err(Incomplete::Failed(ExchangeError::NotHttp));
        }
        progress.transfers.fetch_add(1, Ordering::Relaxed);
        if head.is_interim() {
            if !head.is_strict() {
                return Err(Incomplete::Failed(ExchangeError::NotHttp));
            }
            progress.is_answered.store(true, Ordering::Relaxed);
            if !head.may_be_taken_as_final() {
                let interim = head.to_application(Framing::Empty, false);
                answers.write_all(&interim).await.map_err(|_| Incomplete::Cut)?;
            }
            if is_upgraded {
                return Ok(Exchanged { persists: false, is_reusable: false, is_upgraded });
            }
            continue;
        }
        let framing = head.framing(request.head.is_head()).map_err(Incomplete::Failed)?;
        let persists = is_sent && request.head.persists() && head.is_unambiguous(framing);
        let is_reusable = is_sent && request.head.persists() && head.persists(framing);
        progress.is_answered.store(true, Ordering::Relaxed);
        // An application that has announced the end itself needs no other announcement than it gets directly.
        let announces_end = !persists && (request.head.persists() || head.announces_end());
        let bytes = head.to_application(framing, announces_end);
        drop(head);
        drop(lines);
        let forwarder = Forwarder::new(bytes, reader, answers, &progress.transfers, false, request.max_head_bytes);
        forwarder.forward(framing).await.map_err(|_| Incomplete::Cut)?;
        let is_reusable = is_reusable && !progress.has_finished.load(Ordering::Relaxed);
        return Ok(Exchanged { persists, is_reusable, is_upgraded });
    }
}
