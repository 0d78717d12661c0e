//! Reader and writer of Binary HTTP messages (RFC 9292, indeterminate length) on a stream.
//!
//! Delegated requests and their responses cross the overlay in this format. The head is read into a separate buffer
//! of limited size and decoded by the `bhttp` crate. Content is forwarded in pieces, so that a large body takes no
//! more memory than a small one and backpressure reaches its source. Trailers are read and dropped. Governed by
//! `proto/09-delegated.md`, "HTTP". The sender is not trusted: every length is checked before memory is allocated for
//! it, and a truncated message is an error, never an end.

#[cfg(test)]
mod tests;

use core::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};
use std::{
    error::Error,
    io::{self, Cursor},
};

use bhttp::{ControlData, FieldSection, Mode, StatusCode};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, Request, Response, Uri,
    body::{Body, Frame, SizeHint},
    header::{HeaderName, HeaderValue},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};

/// Maximum bytes of a head with the informational responses before it; also of the trailers.
pub(crate) const MAX_HEAD_LEN: usize = 64 * 1024;
/// Maximum fields of a head.
pub(crate) const MAX_FIELDS: usize = 128;
/// Maximum bytes of one piece of a body.
const PIECE: usize = 16 * 1024;
/// Pieces queued between the reader and the consumer of a body.
const WAITING_PIECES: usize = 4;

const REQUEST: u64 = 2;
const RESPONSE: u64 = 3;

/// The reason why a message can't be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    /// The message is truncated, or the stream failed.
    #[error("the message is truncated")]
    Broken,
    /// The bytes are no Binary HTTP message.
    #[error("not a binary HTTP message: {0}")]
    Malformed(&'static str),
    /// The message exceeds a limit.
    #[error("the message is too large")]
    TooLarge,
    /// The source of the body failed.
    #[error("the source of the message's body failed")]
    Source,
}

impl From<io::Error> for MessageError {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

impl From<bhttp::Error> for MessageError {
    fn from(_: bhttp::Error) -> Self {
        Self::Malformed("the head can't be decoded")
    }
}

/// Reads a request up to its content.
///
/// # Errors
/// When the head is truncated, too large or malformed.
pub(crate) async fn read_request(reader: &mut (impl AsyncRead + Unpin)) -> Result<Request<()>, MessageError> {
    let mut head = HeadReader::new(reader);
    head.kind(REQUEST).await?;
    for _ in ["method", "scheme", "authority", "path"] {
        head.vector().await?;
    }
    head.fields().await?;
    let mut bytes = Cursor::new(head.bytes);
    let control = ControlData::read_bhttp(true, &mut bytes)?;
    let ControlData::Request { method, scheme, authority, path } = control else {
        return Err(MessageError::Malformed("the message is not a request"));
    };
    let uri = Uri::builder()
        .scheme(scheme.as_slice())
        .authority(authority.as_slice())
        .path_and_query(path.as_slice())
        .build()
        .map_err(|_| MessageError::Malformed("the URL is not absolute"))?;
    let mut request = Request::new(());
    *request.method_mut() =
        Method::from_bytes(&method).map_err(|_| MessageError::Malformed("the method is invalid"))?;
    *request.uri_mut() = uri;
    *request.headers_mut() = read_fields(&mut bytes)?;
    Ok(request)
}

/// Reads a response up to its content. Informational responses before it are dropped.
///
/// # Errors
/// When the head is truncated, too large or malformed.
pub(crate) async fn read_response(reader: &mut (impl AsyncRead + Unpin)) -> Result<Response<()>, MessageError> {
    let mut head = HeadReader::new(reader);
    head.kind(RESPONSE).await?;
    let mut start = 0;
    loop {
        let status = head.varint().await?.ok_or(MessageError::Broken)?;
        head.fields().await?;
        if !(100..200).contains(&status) {
            break;
        }
        start = head.bytes.len();
    }
    let mut bytes = Cursor::new(head.bytes);
    bytes.advance(start);
    let status = ControlData::read_bhttp(false, &mut bytes)?.status().map(u16::from);
    let mut response = Response::new(());
    *response.status_mut() = status
        .and_then(|status| hyper::StatusCode::from_u16(status).ok())
        .ok_or(MessageError::Malformed("the status is invalid"))?;
    *response.headers_mut() = read_fields(&mut bytes)?;
    Ok(response)
}

fn read_fields(bytes: &mut Cursor<Vec<u8>>) -> Result<HeaderMap, MessageError> {
    let section = FieldSection::read_bhttp(Mode::IndeterminateLength, bytes)?;
    if section.len() > MAX_FIELDS {
        return Err(MessageError::TooLarge);
    }
    let mut headers = HeaderMap::with_capacity(section.len());
    for field in section.iter() {
        // RFC 9292 §3.6 forbids upper case. Names and values must also be valid in HTTP/1.1.
        let name = HeaderName::from_lowercase(field.name())
            .map_err(|_| MessageError::Malformed("a field's name is invalid"))?;
        let value = HeaderValue::from_bytes(field.value())
            .map_err(|_| MessageError::Malformed("a field's value is invalid"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// The encoded head of `request`, whose URL must be absolute.
///
/// # Errors
/// When the URL isn't absolute, or the head is too large.
pub(crate) fn request_head<B>(request: &Request<B>) -> Result<Vec<u8>, MessageError> {
    let uri = request.uri();
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(MessageError::Malformed("the URL is not absolute"));
    };
    let control = ControlData::Request {
        method: request.method().as_str().into(),
        scheme: scheme.into(),
        authority: authority.as_str().into(),
        path: uri.path_and_query().map_or("/", |path| path.as_str()).into(),
    };
    head(REQUEST, &control, request.headers())
}

/// The encoded head of `response`.
///
/// # Errors
/// When the head is too large, or the status isn't final.
pub(crate) fn response_head<B>(response: &Response<B>) -> Result<Vec<u8>, MessageError> {
    let status = StatusCode::try_from(response.status().as_u16())?;
    if status.informational() {
        return Err(MessageError::Malformed("the status is not a final one"));
    }
    head(RESPONSE, &ControlData::Response(status), response.headers())
}

fn head(kind: u64, control: &ControlData, headers: &HeaderMap) -> Result<Vec<u8>, MessageError> {
    let mut section = FieldSection::default();
    for (name, value) in headers {
        section.put(name.as_str(), value.as_bytes());
    }
    let mut bytes = Vec::new();
    put_varint(kind, &mut bytes);
    control.write_bhttp(&mut bytes)?;
    section.write_bhttp(Mode::IndeterminateLength, &mut bytes)?;
    if bytes.len() > MAX_HEAD_LEN || headers.len() > MAX_FIELDS {
        return Err(MessageError::TooLarge);
    }
    Ok(bytes)
}

/// Writes all of `body` and the end of the message.
///
/// # Errors
/// When the body fails or is longer than `cap` bytes, or the stream fails or accepts no piece within `stall`.
pub(crate) async fn write_content<B>(
    writer: &mut (impl AsyncWrite + Unpin),
    body: B,
    cap: u64,
    stall: Duration,
) -> Result<(), MessageError>
where
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
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
            put_varint(chunk.len().try_into().unwrap_or(u64::MAX), &mut size);
            let writing = async {
                writer.write_all(&size).await?;
                writer.write_all(chunk).await
            };
            timeout(stall, writing).await.map_err(|_| MessageError::Broken)??;
            let sent = chunk.len();
            data.advance(sent);
        }
    }
    // The end of the content, and of the empty trailers.
    timeout(stall, writer.write_all(&[0, 0])).await.map_err(|_| MessageError::Broken)??;
    Ok(())
}

/// A message encoded as an HTTP body: the same bytes as [`write_content`] writes, for consumers that poll.
#[derive(Debug)]
pub(crate) struct Encoded<B> {
    /// The next bytes to return: the head, a chunk or the end.
    due: Option<Bytes>,
    body: Option<Pin<Box<B>>>,
}

impl<B> Encoded<B> {
    /// The message of `head` and `body`.
    pub(crate) fn new(head: Vec<u8>, body: B) -> Self {
        Self { due: Some(head.into()), body: Some(Box::pin(body)) }
    }
}

impl<B> Body for Encoded<B>
where
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if let Some(due) = self.due.take() {
                return Poll::Ready(Some(Ok(Frame::data(due))));
            }
            let Some(body) = &mut self.body else { return Poll::Ready(None) };
            match ready!(body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let Ok(mut data) = frame.into_data() else { continue };
                    if data.has_remaining() {
                        let mut chunk = Vec::new();
                        put_varint(data.remaining().try_into().unwrap_or(u64::MAX), &mut chunk);
                        chunk.extend_from_slice(&data.copy_to_bytes(data.remaining()));
                        self.due = Some(chunk.into());
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => {
                    self.body = None;
                    self.due = Some(Bytes::from_static(&[0, 0]));
                }
            }
        }
    }
}

/// The content of a message whose head has been read.
#[derive(Debug)]
pub(crate) struct Content<R> {
    reader: R,
    /// Bytes left of the current chunk.
    left: u64,
    /// Bytes that later chunks may still have in total.
    cap: u64,
    begun: bool,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Content<R> {
    /// The content that `reader` continues with, of at most `cap` bytes.
    pub(crate) const fn new(reader: R, cap: u64) -> Self {
        Self { reader, left: 0, cap, begun: false, ended: false }
    }

    /// The next piece; `None` at the end of the message. The message, with its trailers, must end with the stream.
    ///
    /// # Errors
    /// When the message is truncated or too large. No piece follows an error.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, MessageError> {
        if self.left == 0 && !self.ended {
            match HeadReader::new(&mut self.reader).varint().await? {
                // The message may end after its head if it has no content and no trailers (RFC 9292 §3.8).
                None if self.begun => return Err(MessageError::Broken),
                None => self.ended = true,
                Some(0) => {
                    self.ended = true;
                    HeadReader::new(&mut self.reader).trailers().await?;
                    if self.reader.read(&mut [0]).await? > 0 {
                        return Err(MessageError::Malformed("bytes follow its end"));
                    }
                }
                Some(length) => {
                    self.cap = self.cap.checked_sub(length).ok_or(MessageError::TooLarge)?;
                    self.left = length;
                    self.begun = true;
                }
            }
        }
        if self.ended {
            return Ok(None);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(PIECE);
        let mut piece = BytesMut::with_capacity(most);
        let read = (&mut self.reader).take(most.try_into().unwrap_or(u64::MAX)).read_buf(&mut piece).await?;
        if read == 0 {
            return Err(MessageError::Broken);
        }
        self.left = self.left.saturating_sub(read.try_into().unwrap_or(u64::MAX));
        Ok(Some(piece.freeze()))
    }
}

/// A body whose pieces come through a [`Pipe`].
#[derive(Debug)]
pub(crate) struct Piped {
    pieces: mpsc::Receiver<Result<Bytes, MessageError>>,
    /// The first piece, already read.
    first: Option<Bytes>,
    /// Bytes left, if known.
    left: Option<u64>,
}

/// The sending end of a [`Piped`] body.
pub(crate) type Pipe = mpsc::Sender<Result<Bytes, MessageError>>;

impl Piped {
    /// A body and its sending end; `first` is its first piece, `None` if the body is empty.
    pub(crate) fn new(first: Option<Bytes>) -> (Pipe, Self) {
        let (sender, pieces) = mpsc::channel(WAITING_PIECES);
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

    /// A body whose first piece isn't read yet, and its sending end.
    pub(crate) fn unread() -> (Pipe, Self) {
        let (sender, pieces) = mpsc::channel(WAITING_PIECES);
        (sender, Self { pieces, first: None, left: None })
    }
}

/// Moves the rest of `content` into `pipe` until the end, a failure (which is sent there too), or the body is
/// dropped. A piece that takes longer than `patience` is a failure.
pub(crate) async fn fill<R>(content: &mut Content<R>, pipe: Pipe, patience: Duration) -> Result<(), MessageError>
where
    R: AsyncRead + Unpin,
{
    loop {
        match timeout(patience, content.piece()).await.unwrap_or(Err(MessageError::Broken)) {
            Ok(Some(piece)) => pipe.send(Ok(piece)).await.map_err(|_| MessageError::Source)?,
            Ok(None) => return Ok(()),
            Err(error) => {
                let _ = pipe.send(Err(error)).await;
                return Err(error);
            }
        }
    }
}

impl Body for Piped {
    type Data = Bytes;
    type Error = PipedError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, PipedError>>> {
        if let Some(first) = self.first.take() {
            let taken = first.len().try_into().unwrap_or(u64::MAX);
            self.left = self.left.map(|left| left.saturating_sub(taken));
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.left == Some(0) {
            return Poll::Ready(None);
        }
        let piece = self.pieces.poll_recv(cx);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(PipedError)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The error of a body whose message is truncated or malformed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct PipedError(pub(crate) MessageError);

/// Reads parts of a message and collects their bytes for the decoder, up to a cap.
struct HeadReader<'a, R> {
    reader: &'a mut R,
    bytes: Vec<u8>,
}

impl<'a, R: AsyncRead + Unpin> HeadReader<'a, R> {
    const fn new(reader: &'a mut R) -> Self {
        Self { reader, bytes: Vec::new() }
    }

    /// Reads the kind of the message and drops its bytes. Fails unless it is `wanted`.
    async fn kind(&mut self, wanted: u64) -> Result<(), MessageError> {
        let kind = self.varint().await?.ok_or(MessageError::Broken)?;
        self.bytes.clear();
        if kind == wanted { Ok(()) } else { Err(MessageError::Malformed("the message is not of the expected kind")) }
    }

    /// Reads a variable-length integer (RFC 9000 §16); `None` at the end of the stream.
    async fn varint(&mut self) -> Result<Option<u64>, MessageError> {
        let mut first = [0];
        if self.reader.read(&mut first).await? == 0 {
            return Ok(None);
        }
        let [first] = first;
        self.keep(&[first])?;
        let more = (1_usize << (first >> 6)).saturating_sub(1);
        let mut value = u64::from(first & 0x3f);
        for _ in 0..more {
            let next = self.reader.read_u8().await?;
            self.keep(&[next])?;
            value = (value << 8) | u64::from(next);
        }
        Ok(Some(value))
    }

    /// Reads a length and as many bytes; returns the length.
    async fn vector(&mut self) -> Result<usize, MessageError> {
        let length = self.varint().await?.ok_or(MessageError::Broken)?;
        let length = usize::try_from(length).map_err(|_| MessageError::TooLarge)?;
        let start = self.bytes.len();
        let end = start.checked_add(length).filter(|end| *end <= MAX_HEAD_LEN).ok_or(MessageError::TooLarge)?;
        self.bytes.resize(end, 0);
        if let Some(room) = self.bytes.get_mut(start..) {
            self.reader.read_exact(room).await?;
        }
        Ok(length)
    }

    /// Reads a field section.
    async fn fields(&mut self) -> Result<(), MessageError> {
        while self.vector().await? > 0 {
            self.vector().await?;
        }
        Ok(())
    }

    /// Reads a field section, or the end of the stream in its place.
    async fn trailers(&mut self) -> Result<(), MessageError> {
        let Some(length) = self.varint().await? else { return Ok(()) };
        if length == 0 {
            return Ok(());
        }
        // The first field name, whose length has just been read.
        let length = usize::try_from(length).ok().filter(|length| *length <= MAX_HEAD_LEN);
        self.bytes.resize(length.ok_or(MessageError::TooLarge)?, 0);
        self.reader.read_exact(&mut self.bytes).await?;
        self.vector().await?;
        self.fields().await
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), MessageError> {
        if bytes.len() > MAX_HEAD_LEN.saturating_sub(self.bytes.len()) {
            return Err(MessageError::TooLarge);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// Appends a variable-length integer (RFC 9000 §16). Lengths are below 2^62.
fn put_varint(value: u64, bytes: &mut Vec<u8>) {
    let (marked, length) = match value {
        0..0x40 => (value, 1),
        0x40..0x4000 => (value | 0x4000, 2),
        0x4000..0x4000_0000 => (value | 0x8000_0000, 4),
        _ => (value | 0xc000_0000_0000_0000, 8),
    };
    let marked: [u8; 8] = marked.to_be_bytes();
    bytes.extend_from_slice(marked.get(8_usize.saturating_sub(length)..).unwrap_or_default());
}
