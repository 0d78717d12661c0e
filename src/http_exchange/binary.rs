//! Binary HTTP messages (RFC 9292) on a stream, with heads as types of `hyper` and content in pieces.
//!
//! Delegated requests and their responses have this format in the overlay. [`delegated::binary_http`] has the codec and
//! its caps; this module has the I/O, the timeouts and the queues. Content is forwarded in pieces, so that a large body
//! needs no more memory than a small one, and backpressure reaches the source of the body. Governed by
//! `proto/09-delegated.md` §6. The sender of a message is not trusted.
//!
//! [`delegated::binary_http`]: crate::delegated::binary_http

#[cfg(test)]
mod tests;

use core::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};
use std::io;

use bytes::{Buf, Bytes};
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::{Body, Frame, SizeHint},
    header::{HeaderName, HeaderValue},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};

use super::body::BodyError;
use crate::delegated::binary_http::{self, BinaryHttpError, Decoder, Field, Head, Part, TERMINATORS, put_number};

/// Maximum bytes of one piece of a body.
const MAX_PIECE: usize = 16 * 1024;
/// Maximum pieces queued between the reader and the consumer of a body.
const MAX_QUEUED_PIECES: usize = 4;

/// The reason why a message can't be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    /// The message is truncated, or the stream failed.
    #[error("the message is truncated")]
    Broken,
    /// The bytes are not a Binary HTTP message.
    #[error("not a binary HTTP message: {0}")]
    Malformed(&'static str),
    /// The message exceeds a limit.
    #[error("the message is too large")]
    TooLarge,
    /// The source of the body failed, or its consumer was dropped.
    #[error("the source of the message's body failed")]
    Source,
}

impl From<io::Error> for MessageError {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

impl From<BinaryHttpError> for MessageError {
    fn from(error: BinaryHttpError) -> Self {
        match error {
            BinaryHttpError::Truncated => Self::Broken,
            BinaryHttpError::Malformed(reason) => Self::Malformed(reason),
            BinaryHttpError::TooLarge => Self::TooLarge,
        }
    }
}

/// Reads the head of a request. The returned content may have at most `cap` bytes.
///
/// # Errors
/// When the head is truncated, too large or malformed.
pub(crate) async fn read_request<R>(reader: R, cap: u64) -> Result<(Request<()>, Content<R>), MessageError>
where
    R: AsyncRead + Unpin,
{
    let mut content = Content { reader, decoder: Decoder::request(cap) };
    let Part::Head(Head::Request { control: [method, scheme, authority, path], fields }) = content.part().await? else {
        return Err(MessageError::Malformed("the message is not a request"));
    };
    let uri = Uri::builder()
        .scheme(scheme.as_ref())
        .authority(authority.as_ref())
        .path_and_query(path.as_ref())
        .build()
        .map_err(|_| MessageError::Malformed("the URL is not absolute"))?;
    let mut request = Request::new(());
    *request.method_mut() =
        Method::from_bytes(&method).map_err(|_| MessageError::Malformed("the method is invalid"))?;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers(&fields)?;
    Ok((request, content))
}

/// Reads the head of a response. The returned content may have at most `cap` bytes. Informational responses are
/// dropped.
///
/// # Errors
/// When the head is truncated, too large or malformed.
pub(crate) async fn read_response<R>(reader: R, cap: u64) -> Result<(Response<()>, Content<R>), MessageError>
where
    R: AsyncRead + Unpin,
{
    let mut content = Content { reader, decoder: Decoder::response(cap) };
    match content.part().await? {
        Part::Head(head) => Ok((response(&head)?, content)),
        _ => Err(MessageError::Malformed("the message is not a response")),
    }
}

/// The response with this head, without a body.
///
/// # Errors
/// When the head is a request's, or the status or a field is invalid.
pub(crate) fn response(head: &Head) -> Result<Response<()>, MessageError> {
    let Head::Response { status, fields } = head else {
        return Err(MessageError::Malformed("the message is not a response"));
    };
    let mut response = Response::new(());
    *response.status_mut() =
        StatusCode::from_u16(*status).map_err(|_| MessageError::Malformed("the status is invalid"))?;
    *response.headers_mut() = headers(fields)?;
    Ok(response)
}

fn headers(fields: &[Field]) -> Result<HeaderMap, MessageError> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        let name =
            HeaderName::from_lowercase(name).map_err(|_| MessageError::Malformed("a field's name is invalid"))?;
        let value =
            HeaderValue::from_bytes(value).map_err(|_| MessageError::Malformed("a field's value is invalid"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// The names and values of `headers`.
pub(crate) fn fields(headers: &HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}

/// Method, scheme, authority and path of `request`, whose URL must be absolute.
pub(crate) fn control<B>(request: &Request<B>) -> Option<[&str; 4]> {
    let uri = request.uri();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Some([request.method().as_str(), uri.scheme_str()?, uri.authority()?.as_str(), path])
}

/// The encoded head of `request`, whose URL must be absolute.
///
/// # Errors
/// When the URL isn't absolute, or the head is too large.
pub(crate) fn request_head<B>(request: &Request<B>) -> Result<Vec<u8>, MessageError> {
    let control = control(request).ok_or(MessageError::Malformed("the URL is not absolute"))?;
    Ok(binary_http::request_head(control, fields(request.headers()))?)
}

/// The encoded head of `response`.
///
/// # Errors
/// When the head is too large, or the status isn't final.
pub(crate) fn response_head<B>(response: &Response<B>) -> Result<Vec<u8>, MessageError> {
    Ok(binary_http::response_head(response.status().as_u16(), fields(response.headers()))?)
}

/// Writes the whole `body` and the end of the message.
///
/// # Errors
/// When the body fails or is longer than `cap` bytes, or when the stream fails or does not accept a piece within
/// `piece_timeout`.
pub(crate) async fn write_content<B: Body<Error: Into<BodyError>>>(
    writer: &mut (impl AsyncWrite + Unpin),
    body: B,
    cap: u64,
    piece_timeout: Duration,
) -> Result<(), MessageError> {
    let mut body = pin!(body);
    let mut length = 0_u64;
    while let Some(frame) = body.frame().await.map(|frame| frame.map_err(|_| MessageError::Source)) {
        let Ok(mut data) = frame?.into_data() else { continue };
        length = length.saturating_add(data.remaining().try_into().unwrap_or(u64::MAX));
        if length > cap {
            return Err(MessageError::TooLarge);
        }
        while data.has_remaining() {
            let chunk = data.chunk();
            let mut size = Vec::new();
            put_number(chunk.len().try_into().unwrap_or(u64::MAX), &mut size);
            let writing = async {
                writer.write_all(&size).await?;
                writer.write_all(chunk).await
            };
            timeout(piece_timeout, writing).await.map_err(|_| MessageError::Broken)??;
            let sent = chunk.len();
            data.advance(sent);
        }
    }
    timeout(piece_timeout, writer.write_all(&TERMINATORS)).await.map_err(|_| MessageError::Broken)??;
    Ok(())
}

/// A message encoded as an HTTP body: the head, then the bytes that [`write_content`] would write.
#[derive(Debug)]
pub(crate) struct EncodedMessage<B> {
    /// The next bytes to return: the head, a chunk or the end.
    next: Option<Bytes>,
    body: Option<Pin<Box<B>>>,
}

impl<B> EncodedMessage<B> {
    /// The message of `head` and `body`.
    pub(crate) fn new(head: Vec<u8>, body: B) -> Self {
        Self { next: Some(head.into()), body: Some(Box::pin(body)) }
    }
}

impl<B: Body<Error: Into<BodyError>>> Body for EncodedMessage<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if let Some(next) = self.next.take() {
                return Poll::Ready(Some(Ok(Frame::data(next))));
            }
            let Some(body) = &mut self.body else { return Poll::Ready(None) };
            match ready!(body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let Ok(mut data) = frame.into_data() else { continue };
                    if data.has_remaining() {
                        let mut chunk = Vec::new();
                        put_number(data.remaining().try_into().unwrap_or(u64::MAX), &mut chunk);
                        chunk.extend_from_slice(&data.copy_to_bytes(data.remaining()));
                        self.next = Some(chunk.into());
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => {
                    self.body = None;
                    self.next = Some(Bytes::from_static(&TERMINATORS));
                }
            }
        }
    }
}

/// The content of a message, after its head has been read.
#[derive(Debug)]
pub(crate) struct Content<R> {
    reader: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> Content<R> {
    /// The next piece; `None` at the end of the message. The stream must end after the message and its trailers.
    ///
    /// # Errors
    /// When the message is truncated, malformed or too large. No piece follows an error.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, MessageError> {
        match self.part().await? {
            Part::Content(piece) => Ok(Some(piece)),
            Part::End | Part::Head(_) => Ok(None),
        }
    }

    async fn part(&mut self) -> Result<Part, MessageError> {
        let mut ended = false;
        loop {
            if let Some(part) = self.decoder.poll_part(ended)? {
                return Ok(part);
            }
            let max_len = u64::try_from(MAX_PIECE).unwrap_or(u64::MAX);
            let buffer = self.decoder.buffer_mut();
            // Parts share blocks of memory. Otherwise each stored part would occupy a whole block.
            if buffer.capacity().saturating_sub(buffer.len()) < MAX_PIECE / 4 {
                buffer.reserve(MAX_PIECE);
            }
            ended = (&mut self.reader).take(max_len).read_buf(buffer).await? == 0;
        }
    }
}

/// A body with pieces from a [`Pipe`].
#[derive(Debug)]
pub(crate) struct PipedBody {
    pieces: mpsc::Receiver<Result<Bytes, MessageError>>,
    /// The first piece, already read.
    first: Option<Bytes>,
    /// Remaining bytes, if known.
    left: Option<u64>,
}

/// The sending end of a [`PipedBody`] body.
pub(crate) type Pipe = mpsc::Sender<Result<Bytes, MessageError>>;

impl PipedBody {
    /// A body and its sending end. `first` is the body's first piece, or `None` if the body is empty.
    pub(crate) fn new(first: Option<Bytes>) -> (Pipe, Self) {
        let (sender, pieces) = mpsc::channel(MAX_QUEUED_PIECES);
        let left = first.is_none().then_some(0);
        (sender, Self { pieces, first, left })
    }

    /// A body of one piece.
    pub(crate) fn whole(piece: Bytes) -> Self {
        let left = piece.len().try_into().ok();
        // No piece follows, because the sending end is dropped.
        let (_, body) = Self::new(Some(piece).filter(|piece| !piece.is_empty()));
        Self { left, ..body }
    }

    /// A body of unknown length, and its sending end.
    pub(crate) fn of_unknown_length() -> (Pipe, Self) {
        let (sender, pieces) = mpsc::channel(MAX_QUEUED_PIECES);
        (sender, Self { pieces, first: None, left: None })
    }
}

/// Moves the remaining pieces of `content` into `pipe`.
///
/// # Errors
/// When the content is truncated, malformed or too large, or a piece does not arrive within `piece_timeout`; the error
/// is also sent to `pipe`. [`MessageError::Source`] when the body has been dropped.
pub(crate) async fn fill<R>(content: &mut Content<R>, pipe: Pipe, piece_timeout: Duration) -> Result<(), MessageError>
where
    R: AsyncRead + Unpin,
{
    loop {
        match timeout(piece_timeout, content.piece()).await.unwrap_or(Err(MessageError::Broken)) {
            Ok(Some(piece)) => pipe.send(Ok(piece)).await.map_err(|_| MessageError::Source)?,
            Ok(None) => return Ok(()),
            Err(error) => {
                let _ = pipe.send(Err(error)).await;
                return Err(error);
            }
        }
    }
}

impl Body for PipedBody {
    type Data = Bytes;
    type Error = PipedBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PipedBodyError>>> {
        if let Some(first) = self.first.take() {
            let length = first.len().try_into().unwrap_or(u64::MAX);
            self.left = self.left.map(|left| left.saturating_sub(length));
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.left == Some(0) {
            return Poll::Ready(None);
        }
        let piece = self.pieces.poll_recv(cx);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(PipedBodyError)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The error of a [`PipedBody`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct PipedBodyError(pub(crate) MessageError);
