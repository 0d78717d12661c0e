//! Codec of whole HTTP requests and responses as Binary HTTP (RFC 9292), of indeterminate length.
//!
//! For messages that are in memory as a whole; `io::binary_http` forwards bodies in pieces. Fields that must not pass
//! are removed in both directions ([`super::fields`]). Governed by `proto/09-delegated.md` §6. Responses come from an
//! untrusted exit: stated lengths reserve no memory, heads are capped, and truncated messages are rejected.

use super::{Refusal, fields};

/// Cap on bytes of a head, with preceding informational responses.
pub const MAX_HEAD_LEN: usize = 64 * 1024;
/// Cap on fields of a head.
pub const MAX_FIELDS: usize = 128;

const REQUEST: u64 = 2;
const RESPONSE: u64 = 3;
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];

/// Why a message is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The address isn't an absolute `http` or `https` URL, or contains a user name.
    #[error("the URL is not an http or https URL of a host")]
    Address,
    /// No exit performs this method.
    #[error("exits don't support this method")]
    Method,
    /// A field has an invalid name or value.
    #[error("a header field is invalid")]
    Field,
    /// The head exceeds its caps.
    #[error("the head is too large")]
    TooLarge,
    /// The message is malformed or truncated.
    #[error("the answer is truncated or not HTTP")]
    Malformed,
}

/// A request for an exit to perform. Prints redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpRequest {
    method: &'static str,
    scheme: &'static str,
    authority: String,
    host: String,
    path: String,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl HttpRequest {
    /// A request for `url`, without its fragment. Has the `fields` that may pass, and those that all requests have.
    ///
    /// # Errors
    /// When the address, the method or a field is invalid.
    pub fn new(
        method: &str,
        url: &str,
        fields: impl IntoIterator<Item = (String, String)>,
        body: Vec<u8>,
    ) -> Result<Self, MessageError> {
        let method = METHODS.iter().find(|known| known.eq_ignore_ascii_case(method)).ok_or(MessageError::Method)?;
        let (scheme, rest) = ["https", "http"]
            .iter()
            .find_map(|scheme| Some((*scheme, url.strip_prefix(scheme)?.strip_prefix("://")?)))
            .ok_or(MessageError::Address)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).ok_or(MessageError::Address)?;
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let host = host_of(authority).ok_or(MessageError::Address)?;
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) || url.len() > MAX_HEAD_LEN {
            return Err(MessageError::Address);
        }
        let fields = outgoing(fields, body.len())?;
        Ok(Self { method, scheme, authority: authority.to_owned(), host, path, fields, body })
    }

    /// The target's host, in lower case, an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether it uses TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.scheme == "https"
    }

    /// The target's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        let named = self.authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        named.unwrap_or(if self.is_https() { 443 } else { 80 })
    }

    /// Its method.
    #[must_use]
    pub const fn method(&self) -> &'static str {
        self.method
    }

    /// Host and, if given, port, as in the URL.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Path and query.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Names in lower case with their values, in sending order.
    #[must_use]
    pub fn fields(&self) -> &[(String, String)] {
        &self.fields
    }

    /// Its content.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// Encodes it for the exit.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`].
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        let mut bytes = Vec::new();
        put_number(REQUEST, &mut bytes);
        for text in [self.method, self.scheme, &self.authority, &self.path] {
            put_text(text.as_bytes(), &mut bytes);
        }
        for (name, value) in &self.fields {
            put_text(name.as_bytes(), &mut bytes);
            put_text(value.as_bytes(), &mut bytes);
        }
        bytes.push(0);
        if bytes.len() > MAX_HEAD_LEN || self.fields.len() > MAX_FIELDS {
            return Err(MessageError::TooLarge);
        }
        if !self.body.is_empty() {
            put_text(&self.body, &mut bytes);
        }
        // The end of the content, and of the absent trailers.
        bytes.extend_from_slice(&[0, 0]);
        Ok(bytes)
    }
}

impl core::fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("HttpRequest([redacted])")
    }
}

/// The name or address in `authority`; `None` if it contains a user name or is invalid.
fn host_of(authority: &str) -> Option<String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => authority.find(':').map_or((authority, ""), |colon| authority.split_at(colon)),
    };
    let is_port = match port.strip_prefix(':') {
        // `parse` would accept a sign before the digits.
        Some(digits) => !digits.starts_with('+') && digits.parse::<u16>().is_ok_and(|port| port > 0),
        None => port.is_empty(),
    };
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    let is_host = (1..=253).contains(&host.len()) && host.bytes().all(fits);
    (is_port && is_host).then(|| host.to_ascii_lowercase())
}

/// The fields to send: those given that may pass, and those that all requests have.
fn outgoing(
    given: impl IntoIterator<Item = (String, String)>,
    body_len: usize,
) -> Result<Vec<(String, String)>, MessageError> {
    let mut kept = Vec::new();
    for (name, value) in given {
        let name = name.to_ascii_lowercase();
        if !is_name(&name) || !is_value(value.as_bytes()) {
            return Err(MessageError::Field);
        }
        let fixed = ["user-agent", "accept-encoding", "content-length"].contains(&name.as_str());
        if !fixed && !fields::is_hop_by_hop(&name) && !fields::is_identifying(&name) {
            kept.push((name, value));
        }
    }
    let has = |wanted: &str| kept.iter().any(|(name, _)| name == wanted);
    let defaults = [("accept", "*/*"), ("accept-language", "en")];
    let missing: Vec<_> = defaults.into_iter().filter(|(name, _)| !has(name)).collect();
    let fixed = [("user-agent", fields::USER_AGENT), ("accept-encoding", "identity")];
    kept.extend(fixed.into_iter().chain(missing).map(|(name, value)| (name.to_owned(), value.to_owned())));
    if body_len > 0 {
        kept.push(("content-length".to_owned(), body_len.to_string()));
    }
    Ok(kept)
}

/// A response. Prints redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// The final status.
    pub status: u16,
    /// Names in lower case.
    pub fields: Vec<(String, Vec<u8>)>,
    /// Its content.
    pub body: Vec<u8>,
    /// The reason, if the exit refused the request.
    pub refusal: Option<Refusal>,
}

impl HttpResponse {
    /// Decodes all bytes of a stream that ended cleanly. Drops informational responses, trailers, and fields that
    /// must not pass.
    ///
    /// # Errors
    /// [`MessageError::Malformed`] and [`MessageError::TooLarge`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader { rest: bytes };
        if reader.number()? != RESPONSE {
            return Err(MessageError::Malformed);
        }
        let (status, found) = loop {
            let status = u16::try_from(reader.number()?).map_err(|_| MessageError::Malformed)?;
            let found = reader.fields()?;
            if bytes.len().saturating_sub(reader.rest.len()) > MAX_HEAD_LEN {
                return Err(MessageError::TooLarge);
            }
            match status {
                100..200 => {}
                200..600 => break (status, found),
                _ => return Err(MessageError::Malformed),
            }
        };
        let body = reader.content()?;
        let value = |wanted: &str| found.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_slice());
        let refusal = value(fields::PROXY_STATUS)
            .and_then(|value| core::str::from_utf8(value).ok())
            .and_then(|value| Refusal::of_answer(status, value));
        let named = value("connection").map(|value| String::from_utf8_lossy(value).to_ascii_lowercase());
        let is_named = |name: &str| named.iter().flat_map(|named| named.split(',')).any(|one| one.trim() == name);
        let passes = |name: &str| !fields::is_hop_by_hop(name) && !fields::is_remembered(name) && !is_named(name);
        let fields = found.iter().filter(|(name, _)| passes(name)).cloned().collect();
        Ok(Self { status, fields, body, refusal })
    }
}

impl core::fmt::Debug for HttpResponse {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("HttpResponse([redacted])")
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], MessageError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(MessageError::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A variable-length integer (RFC 9000 §16).
    fn number(&mut self) -> Result<u64, MessageError> {
        let (first, rest) = self.take(1)?.split_first().ok_or(MessageError::Malformed)?;
        debug_assert!(rest.is_empty());
        let more = (1_usize << (first >> 6)).saturating_sub(1);
        let number =
            self.take(more)?.iter().fold(u64::from(first & 0x3f), |number, byte| number << 8 | u64::from(*byte));
        Ok(number)
    }

    fn text(&mut self) -> Result<&'a [u8], MessageError> {
        let length = usize::try_from(self.number()?).map_err(|_| MessageError::Malformed)?;
        self.take(length)
    }

    /// Fields up to their terminator. A message may end after its head if nothing follows (RFC 9292 §3.8).
    fn fields(&mut self) -> Result<Vec<(String, Vec<u8>)>, MessageError> {
        let mut fields = Vec::new();
        loop {
            let name = self.text()?;
            if name.is_empty() {
                return Ok(fields);
            }
            let value = self.text()?;
            let name = core::str::from_utf8(name).ok().filter(|name| is_name(name)).ok_or(MessageError::Malformed)?;
            if !is_value(value) {
                return Err(MessageError::Malformed);
            }
            if fields.len() >= MAX_FIELDS {
                return Err(MessageError::TooLarge);
            }
            fields.push((name.to_owned(), value.to_vec()));
        }
    }

    /// The content and the end of the message.
    fn content(&mut self) -> Result<Vec<u8>, MessageError> {
        let mut content = Vec::new();
        if self.rest.is_empty() {
            return Ok(content);
        }
        loop {
            let chunk = self.text()?;
            if chunk.is_empty() {
                break;
            }
            content.extend_from_slice(chunk);
        }
        if !self.rest.is_empty() {
            self.fields()?;
        }
        if self.rest.is_empty() { Ok(content) } else { Err(MessageError::Malformed) }
    }
}

/// Whether `name` is a token in lower case (RFC 9292 §3.6).
fn is_name(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token)
}

fn is_value(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f))
}

fn put_number(number: u64, bytes: &mut Vec<u8>) {
    let encoded = number.to_be_bytes();
    let (prefix, skipped) = match number {
        0..0x40 => (0x00, 7),
        0x40..0x4000 => (0x40, 6),
        0x4000..0x4000_0000 => (0x80, 4),
        _ => (0xc0, 0),
    };
    let start = bytes.len();
    bytes.extend(encoded.iter().skip(skipped));
    if let Some(first) = bytes.get_mut(start) {
        *first |= prefix;
    }
}

fn put_text(text: &[u8], bytes: &mut Vec<u8>) {
    put_number(u64::try_from(text.len()).unwrap_or(u64::MAX), bytes);
    bytes.extend_from_slice(text);
}

#[cfg(test)]
mod tests;
