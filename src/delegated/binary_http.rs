//! Codec of Binary HTTP messages (RFC 9292), without I/O; for native programs and for pages.
//!
//! A [`Decoder`] takes bytes in pieces of any size and returns the head and the content as they arrive. It buffers a
//! head, but no content. Delegated requests and their responses have indeterminate length (`proto/09-delegated.md`
//! §6). Sealed responses (§7) may have known length and padding too.
//!
//! The sender is not trusted. Each length is checked before its bytes are buffered, and heads are capped.
//! Informational responses and trailers are skipped. A truncated message is an error.

#[cfg(test)]
mod tests;

use bytes::{Buf as _, Bytes, BytesMut};

/// Cap on bytes of a head, including preceding informational responses; also on bytes of the trailers.
pub const MAX_HEAD_LEN: usize = 64 * 1024;
/// Cap on fields of a head.
pub const MAX_FIELDS: usize = 128;
/// Cap on the fields of a message, trailers included. Each informational response counts as one more field.
pub const MAX_TOTAL_FIELDS: usize = 1024;
/// The terminators of the content and of an empty trailer section, in a message of indeterminate length.
pub const TERMINATORS: [u8; 2] = [0, 0];

// Framing indicators (RFC 9292 §3.3).
const KNOWN_LENGTH_REQUEST: u64 = 0;
const KNOWN_LENGTH_RESPONSE: u64 = 1;
const INDETERMINATE_REQUEST: u64 = 2;
const INDETERMINATE_RESPONSE: u64 = 3;

/// Why a message can't be decoded or encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BinaryHttpError {
    /// The message ends early.
    #[error("the message is truncated")]
    Truncated,
    /// The bytes are not a Binary HTTP message.
    #[error("not a binary HTTP message: {0}")]
    Malformed(&'static str),
    /// The message exceeds a cap.
    #[error("the message is too large")]
    TooLarge,
}

/// A field: its name in lower case, and its value.
pub type Field = (Bytes, Bytes);

/// The first part of a message.
#[derive(Clone, PartialEq, Eq)]
pub enum Head {
    /// The head of a request.
    Request {
        /// Method, scheme, authority and path, unchecked.
        control: [Bytes; 4],
        /// Checked fields.
        fields: Vec<Field>,
    },
    /// The head of a response.
    Response {
        /// The final status, 200 to 599.
        status: u16,
        /// Checked fields.
        fields: Vec<Field>,
    },
}

/// A part of a message.
#[derive(Clone, PartialEq, Eq)]
pub enum Part {
    /// Control data and fields. The first part, once.
    Head(Head),
    /// The next bytes of the content; never empty.
    Content(Bytes),
    /// The end of the message and of its stream.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DecoderState {
    FramingIndicator,
    /// The control data of a request, and the number of decoded values.
    Control(usize),
    Status,
    /// The fields of an informational response.
    InformationalFields,
    Fields,
    /// Remaining bytes of the current chunk, and whether it is the first chunk.
    Content(u64, bool),
    Trailers,
    End,
}

/// Decodes one message. The owner appends bytes to [`Self::buffer_mut`], and calls [`Self::poll_part`] until it returns
/// `None`.
pub struct Decoder {
    buffer: BytesMut,
    state: DecoderState,
    is_request: bool,
    /// Whether the message was sealed, and so may have a known length and padding.
    is_sealed: bool,
    /// Whether the message has a known length.
    is_known_length: bool,
    /// The cap on further bytes of content.
    content_left: u64,
    control: [Bytes; 4],
    status: u16,
    fields: Vec<Field>,
    /// The name of a field whose value is incomplete.
    name: Option<Bytes>,
    /// The number of bytes consumed of the head, or of the trailers.
    consumed: usize,
    /// The value of `consumed` at the end of the current field section, in a message of known length.
    section_end: Option<usize>,
    /// The number of fields and informational responses.
    total_fields: usize,
}

impl Decoder {
    /// A decoder of a request of indeterminate length, with at most `cap` bytes of content.
    #[must_use]
    pub fn request(cap: u64) -> Self {
        Self::new(true, false, cap)
    }

    /// A decoder of a response of indeterminate length, with at most `cap` bytes of content.
    #[must_use]
    pub fn response(cap: u64) -> Self {
        Self::new(false, false, cap)
    }

    /// A decoder of a response of known or indeterminate length, with optional padding and at most `cap` bytes of
    /// content.
    #[must_use]
    pub fn sealed_response(cap: u64) -> Self {
        Self::new(false, true, cap)
    }

    fn new(is_request: bool, is_sealed: bool, cap: u64) -> Self {
        Self {
            buffer: BytesMut::new(),
            state: DecoderState::FramingIndicator,
            is_request,
            is_sealed,
            is_known_length: false,
            content_left: cap,
            control: Default::default(),
            status: 0,
            fields: Vec::new(),
            name: None,
            consumed: 0,
            section_end: None,
            total_fields: 0,
        }
    }

    /// The undecoded bytes, to which the owner appends received bytes.
    pub const fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next part; `None` if more bytes are needed. `ended` states that no bytes follow; the result is then a part
    /// or an error.
    ///
    /// # Errors
    /// When the message is truncated, malformed or too large. The owner must not call this function again after an
    /// error.
    pub fn poll_part(&mut self, ended: bool) -> Result<Option<Part>, BinaryHttpError> {
        let part = self.step(ended)?;
        if part.is_none() && ended { Err(BinaryHttpError::Truncated) } else { Ok(part) }
    }

    fn step(&mut self, ended: bool) -> Result<Option<Part>, BinaryHttpError> {
        loop {
            // A message may end where only empty parts would follow (RFC 9292 §3.8).
            let is_over = ended && self.buffer.is_empty();
            match self.state {
                DecoderState::FramingIndicator => {
                    let Some(indicator) = self.number()? else { return Ok(None) };
                    self.is_known_length = indicator == KNOWN_LENGTH_RESPONSE;
                    let expected = if self.is_request { INDETERMINATE_REQUEST } else { INDETERMINATE_RESPONSE };
                    if indicator != expected && !(self.is_sealed && self.is_known_length) {
                        return Err(BinaryHttpError::Malformed("the message is not of the expected kind"));
                    }
                    self.consumed = 0;
                    self.state = if self.is_request { DecoderState::Control(0) } else { DecoderState::Status };
                }
                DecoderState::Control(index) => match self.control.get(index) {
                    Some(_) => {
                        let Some(value) = self.vector()? else { return Ok(None) };
                        if let Some(slot) = self.control.get_mut(index) {
                            *slot = value;
                        }
                        self.state = DecoderState::Control(index.saturating_add(1));
                    }
                    None => self.state = DecoderState::Fields,
                },
                DecoderState::Status => {
                    let Some(status) = self.number()? else { return Ok(None) };
                    self.state = match status {
                        100..200 => {
                            self.count_field()?;
                            DecoderState::InformationalFields
                        }
                        200..600 => DecoderState::Fields,
                        _ => return Err(BinaryHttpError::Malformed("the status is invalid")),
                    };
                    self.status = u16::try_from(status).unwrap_or_default();
                }
                DecoderState::InformationalFields => {
                    if !self.skip_fields(false)? {
                        return Ok(None);
                    }
                    self.state = DecoderState::Status;
                }
                DecoderState::Fields => {
                    let is_missing = self.is_known_length && is_over && self.section_end.is_none();
                    if !is_missing && !self.take_fields()? {
                        return Ok(None);
                    }
                    self.state = DecoderState::Content(0, true);
                    return Ok(Some(Part::Head(self.take_head())));
                }
                DecoderState::Content(0, first) if is_over && (first || self.is_known_length) => {
                    self.state = DecoderState::End;
                }
                DecoderState::Content(0, false) if self.is_known_length => self.begin_trailers(),
                DecoderState::Content(0, _) => {
                    // The lengths of chunks don't count towards the cap on the head.
                    self.consumed = 0;
                    let Some(length) = self.number()? else { return Ok(None) };
                    self.content_left = self.content_left.checked_sub(length).ok_or(BinaryHttpError::TooLarge)?;
                    match length {
                        0 => self.begin_trailers(),
                        _ => self.state = DecoderState::Content(length, false),
                    }
                }
                DecoderState::Content(left, _) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                    if length == 0 {
                        return Ok(None);
                    }
                    let piece = self.buffer.split_to(length).freeze();
                    self.state =
                        DecoderState::Content(left.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX)), false);
                    return Ok(Some(Part::Content(piece)));
                }
                DecoderState::Trailers => {
                    if !self.skip_fields(is_over)? {
                        return Ok(None);
                    }
                    self.state = DecoderState::End;
                }
                DecoderState::End if !self.buffer.is_empty() && !self.is_sealed => {
                    return Err(BinaryHttpError::Malformed("bytes follow its end"));
                }
                DecoderState::End => return Ok(ended.then_some(Part::End)),
            }
        }
    }

    fn begin_trailers(&mut self) {
        (self.state, self.consumed) = (DecoderState::Trailers, 0);
    }

    fn take_head(&mut self) -> Head {
        let fields = core::mem::take(&mut self.fields);
        if self.is_request {
            Head::Request { control: core::mem::take(&mut self.control), fields }
        } else {
            Head::Response { status: self.status, fields }
        }
    }

    /// Takes the fields of the head. Returns false if more bytes are needed.
    fn take_fields(&mut self) -> Result<bool, BinaryHttpError> {
        loop {
            let Some(field) = self.field()? else { return Ok(false) };
            let Some((name, value)) = field else { return Ok(true) };
            if !core::str::from_utf8(&name).is_ok_and(is_name) {
                return Err(BinaryHttpError::Malformed("a field's name is invalid"));
            }
            if !is_value(&value) {
                return Err(BinaryHttpError::Malformed("a field's value is invalid"));
            }
            if self.fields.len() >= MAX_FIELDS {
                return Err(BinaryHttpError::TooLarge);
            }
            self.fields.push((name, value));
        }
    }

    /// Drops a field section. Returns true at the section's end. The section may be missing if the message `is_over`.
    fn skip_fields(&mut self, is_over: bool) -> Result<bool, BinaryHttpError> {
        if is_over && self.consumed == 0 {
            return Ok(true);
        }
        loop {
            match self.field()? {
                Some(Some(_)) => {}
                Some(None) => return Ok(true),
                None => return Ok(false),
            }
        }
    }

    /// The next field, `Some(None)` at the end of the section, or `None` if more bytes are needed.
    fn field(&mut self) -> Result<Option<Option<Field>>, BinaryHttpError> {
        if self.is_known_length && self.section_end.is_none() {
            let Some(length) = self.number()? else { return Ok(None) };
            self.section_end = Some(self.end_after(length)?);
        }
        if self.section_end == Some(self.consumed) && self.name.is_none() {
            self.section_end = None;
            return Ok(Some(None));
        }
        let name = match self.name.take() {
            Some(name) => name,
            None => {
                let Some(name) = self.vector()? else { return Ok(None) };
                name
            }
        };
        if name.is_empty() {
            // In indeterminate length, an empty name is the section's terminator.
            let is_terminator = !self.is_known_length;
            return if is_terminator { Ok(Some(None)) } else { Err(BinaryHttpError::Malformed("a field has no name")) };
        }
        let Some(value) = self.vector()? else {
            self.name = Some(name);
            return Ok(None);
        };
        self.count_field()?;
        Ok(Some(Some((name, value))))
    }

    fn count_field(&mut self) -> Result<(), BinaryHttpError> {
        self.total_fields = self.total_fields.saturating_add(1);
        if self.total_fields > MAX_TOTAL_FIELDS { Err(BinaryHttpError::TooLarge) } else { Ok(()) }
    }

    /// Takes a variable-length integer.
    fn number(&mut self) -> Result<Option<u64>, BinaryHttpError> {
        let Some((number, length)) = self.peek_number() else { return Ok(None) };
        self.take(length, 0).map(|bytes| bytes.map(|_| number))
    }

    /// Takes a length, and the bytes of that length.
    fn vector(&mut self) -> Result<Option<Bytes>, BinaryHttpError> {
        let Some((length, prefix)) = self.peek_number() else { return Ok(None) };
        self.take(prefix, length)
    }

    /// Drops `prefix` bytes, then takes `length` bytes. `None` if more bytes are needed.
    fn take(&mut self, prefix: usize, length: u64) -> Result<Option<Bytes>, BinaryHttpError> {
        let end = self.end_after(length.saturating_add(u64::try_from(prefix).unwrap_or(u64::MAX)))?;
        if self.section_end.is_some_and(|section_end| end > section_end) {
            return Err(BinaryHttpError::Malformed("a field exceeds its section"));
        }
        let total = end.saturating_sub(self.consumed);
        if self.buffer.len() < total {
            return Ok(None);
        }
        self.consumed = end;
        self.buffer.advance(prefix);
        Ok(Some(self.buffer.split_to(total.saturating_sub(prefix)).freeze()))
    }

    /// The value of `consumed` after `length` more bytes, within the cap.
    fn end_after(&self, length: u64) -> Result<usize, BinaryHttpError> {
        let end = usize::try_from(length).ok().and_then(|length| self.consumed.checked_add(length));
        end.filter(|end| *end <= MAX_HEAD_LEN).ok_or(BinaryHttpError::TooLarge)
    }

    /// The variable-length integer (RFC 9000 §16) at the start of the buffer, and its length.
    fn peek_number(&self) -> Option<(u64, usize)> {
        let (first, rest) = self.buffer.split_first()?;
        let length = 1_usize << (first >> 6);
        let more = rest.get(..length.saturating_sub(1))?;
        let number = more.iter().fold(u64::from(first & 0x3f), |number, byte| (number << 8) | u64::from(*byte));
        Some((number, length))
    }
}

impl core::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Decoder([redacted])")
    }
}

/// Whether `name` is a field name: a token in lower case (RFC 9110 §5.6.2, RFC 9292 §3.6).
pub(super) fn is_name(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token)
}

/// Whether `value` has no control characters except tabs (RFC 9110 §5.5).
pub(super) fn is_value(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f))
}

/// Encodes the head of a request of indeterminate length. `control` is method, scheme, authority and path.
///
/// # Errors
/// [`BinaryHttpError::TooLarge`] if the head exceeds its caps.
pub fn request_head<'a>(
    control: [&str; 4],
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<Vec<u8>, BinaryHttpError> {
    let mut bytes = Vec::new();
    put_number(INDETERMINATE_REQUEST, &mut bytes);
    put_control(control, &mut bytes);
    put_fields(fields, &mut bytes)?;
    end_head(bytes)
}

/// Encodes the head of a response of indeterminate length.
///
/// # Errors
/// [`BinaryHttpError::TooLarge`], or [`BinaryHttpError::Malformed`] if the status isn't final.
pub fn response_head<'a>(
    status: u16,
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<Vec<u8>, BinaryHttpError> {
    if !(200..600).contains(&status) {
        return Err(BinaryHttpError::Malformed("the status is not a final one"));
    }
    let mut bytes = Vec::new();
    put_number(INDETERMINATE_RESPONSE, &mut bytes);
    put_number(status.into(), &mut bytes);
    put_fields(fields, &mut bytes)?;
    end_head(bytes)
}

/// Encodes a complete request of known length. `control` is method, scheme, authority and path.
///
/// # Errors
/// [`BinaryHttpError::TooLarge`] if the head exceeds its caps.
pub fn known_request<'a>(
    control: [&str; 4],
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    content: &[u8],
) -> Result<Vec<u8>, BinaryHttpError> {
    let (mut bytes, mut section) = (Vec::new(), Vec::new());
    put_number(KNOWN_LENGTH_REQUEST, &mut bytes);
    put_control(control, &mut bytes);
    put_fields(fields, &mut section)?;
    put_vector(&section, &mut bytes);
    if bytes.len() > MAX_HEAD_LEN {
        return Err(BinaryHttpError::TooLarge);
    }
    put_vector(content, &mut bytes);
    // An empty trailer section.
    bytes.push(0);
    Ok(bytes)
}

fn put_control(control: [&str; 4], bytes: &mut Vec<u8>) {
    for value in control {
        put_vector(value.as_bytes(), bytes);
    }
}

fn put_fields<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    bytes: &mut Vec<u8>,
) -> Result<(), BinaryHttpError> {
    for (count, (name, value)) in fields.enumerate() {
        if count >= MAX_FIELDS {
            return Err(BinaryHttpError::TooLarge);
        }
        put_vector(name.as_bytes(), bytes);
        put_vector(value, bytes);
    }
    Ok(())
}

fn end_head(mut head: Vec<u8>) -> Result<Vec<u8>, BinaryHttpError> {
    head.push(0);
    if head.len() > MAX_HEAD_LEN { Err(BinaryHttpError::TooLarge) } else { Ok(head) }
}

/// Appends a variable-length integer (RFC 9000 §16), below 2^62.
pub fn put_number(number: u64, bytes: &mut Vec<u8>) {
    let (marked, skipped) = match number {
        0..0x40 => (number, 7),
        0x40..0x4000 => (number | 0x4000, 6),
        0x4000..0x4000_0000 => (number | 0x8000_0000, 4),
        _ => (number | 0xc000_0000_0000_0000, 0),
    };
    bytes.extend(marked.to_be_bytes().iter().skip(skipped));
}

/// Appends a length and `value`. A chunk of content has this form too; an empty chunk would end the content.
pub fn put_vector(value: &[u8], bytes: &mut Vec<u8>) {
    put_number(u64::try_from(value.len()).unwrap_or(u64::MAX), bytes);
    bytes.extend_from_slice(value);
}
