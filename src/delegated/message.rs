//! The client's HTTP requests and responses in memory, as Binary HTTP.
//!
//! [`HttpRequest::new`] checks a request, and [`HttpResponse::decode`] cleans a response of an untrusted exit. Both
//! remove fields ([`super::fields`]). [`super::binary_http`] has the codec. `http_exchange::binary` forwards bodies in
//! pieces instead. Governed by `proto/09-delegated.md` §6.

use bytes::{Bytes, BytesMut};

use super::{
    Refusal,
    binary_http::{
        BinaryHttpError, Decoder, Head, MAX_HEAD_LEN, Part, TERMINATORS, is_name, is_value, put_vector, request_head,
    },
    fields,
};

/// The methods of requests that exits perform. An exit can't perform CONNECT and TRACE for a client.
pub const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];

/// Why a request is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpRequestError {
    /// The URL isn't a valid absolute `http` or `https` URL, or contains a user name or unescaped characters.
    #[error("the URL is not an http or https URL of a host")]
    Address,
    /// The method isn't in [`METHODS`].
    #[error("exits don't support this method")]
    Method,
    /// A field has an invalid name or value.
    #[error("a header field is invalid")]
    Field,
    /// The head exceeds its caps.
    #[error("the URL and the header fields are too large")]
    TooLarge,
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
    /// A request for `url` without its fragment. Removes the request fields that [`fields`] lists, and adds those of
    /// every request.
    ///
    /// # Errors
    /// When the URL, the method or a field is invalid, or the URL is too long.
    pub fn new(
        method: &str,
        url: &str,
        fields: impl IntoIterator<Item = (String, String)>,
        body: Vec<u8>,
    ) -> Result<Self, HttpRequestError> {
        let method = METHODS.iter().find(|known| known.eq_ignore_ascii_case(method)).ok_or(HttpRequestError::Method)?;
        if url.len() > MAX_HEAD_LEN {
            return Err(HttpRequestError::TooLarge);
        }
        let (scheme, rest) = ["https", "http"]
            .iter()
            .find_map(|scheme| Some((*scheme, url.strip_prefix(scheme)?.strip_prefix("://")?)))
            .ok_or(HttpRequestError::Address)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).ok_or(HttpRequestError::Address)?;
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let host = host_of(authority).ok_or(HttpRequestError::Address)?;
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HttpRequestError::Address);
        }
        let fields = outgoing(fields, body.len())?;
        Ok(Self { method, scheme, authority: authority.to_owned(), host, path, fields, body })
    }

    /// The target's host in lower case; an IPv6 address has no brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the URL's scheme is `https`.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.scheme == "https"
    }

    /// The target's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        let explicit = self.authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        explicit.unwrap_or(if self.is_https() { 443 } else { 80 })
    }

    /// The method, one of [`METHODS`].
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

    /// Field names in lower case with their values, in sending order.
    #[must_use]
    pub fn fields(&self) -> &[(String, String)] {
        &self.fields
    }

    /// The content.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// Encodes the request for the exit.
    ///
    /// # Errors
    /// [`HttpRequestError::TooLarge`].
    pub fn encode(&self) -> Result<Vec<u8>, HttpRequestError> {
        let control = [self.method, self.scheme, &self.authority, &self.path];
        let fields = self.fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let mut bytes = request_head(control, fields).map_err(|_| HttpRequestError::TooLarge)?;
        if !self.body.is_empty() {
            put_vector(&self.body, &mut bytes);
        }
        bytes.extend_from_slice(&TERMINATORS);
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

/// The fields to send: those of the client that aren't removed, and those of every request.
fn outgoing(
    client_fields: impl IntoIterator<Item = (String, String)>,
    body_len: usize,
) -> Result<Vec<(String, String)>, HttpRequestError> {
    let mut sent = Vec::new();
    for (name, value) in client_fields {
        let name = name.to_ascii_lowercase();
        if !is_name(&name) || !is_value(value.as_bytes()) {
            return Err(HttpRequestError::Field);
        }
        let is_fixed = name == "content-length" || fields::FIXED.iter().any(|(fixed, _)| *fixed == name);
        if !is_fixed && !fields::is_hop_by_hop(&name) && !fields::is_removed_from_requests(&name) {
            sent.push((name, value));
        }
    }
    let has = |expected: &str| sent.iter().any(|(name, _)| name == expected);
    let missing: Vec<_> = fields::DEFAULTS.into_iter().filter(|(name, _)| !has(name)).collect();
    sent.extend(fields::FIXED.into_iter().chain(missing).map(|(name, value)| (name.to_owned(), value.to_owned())));
    if body_len > 0 {
        sent.push(("content-length".to_owned(), body_len.to_string()));
    }
    Ok(sent)
}

/// A response. Prints redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// The final status.
    pub status: u16,
    /// Field names in lower case, and values.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The content.
    pub body: Vec<u8>,
    /// The reason, if the exit refused the request.
    pub refusal: Option<Refusal>,
}

impl HttpResponse {
    /// Decodes all bytes of a stream that ended with END(Done). Drops informational responses, trailers, hop-by-hop
    /// fields and those of [`fields::is_removed_from_responses`].
    ///
    /// # Errors
    /// When the bytes are not a Binary HTTP response, or its head is too large.
    pub fn decode(bytes: Vec<u8>) -> Result<Self, BinaryHttpError> {
        let mut decoder = Decoder::response(u64::MAX);
        *decoder.buffer_mut() = BytesMut::from(Bytes::from(bytes));
        let Some(Part::Head(Head::Response { status, fields: found })) = decoder.poll_part(true)? else {
            return Err(BinaryHttpError::Truncated);
        };
        let mut body = Vec::new();
        while let Some(Part::Content(piece)) = decoder.poll_part(true)? {
            body.extend_from_slice(&piece);
        }
        let found: Vec<_> = found
            .into_iter()
            .map(|(name, value)| (String::from_utf8_lossy(&name).into_owned(), value.to_vec()))
            .collect();
        let value = |expected: &str| found.iter().find(|(name, _)| name == expected).map(|(_, value)| value.as_slice());
        let refusal = value(fields::PROXY_STATUS)
            .and_then(|value| core::str::from_utf8(value).ok())
            .and_then(|value| Refusal::of_answer(status, value));
        let options = value("connection").map(|value| String::from_utf8_lossy(value).to_ascii_lowercase());
        let is_option =
            |name: &str| options.iter().flat_map(|list| list.split(',')).any(|option| option.trim() == name);
        let passes =
            |name: &str| !fields::is_hop_by_hop(name) && !fields::is_removed_from_responses(name) && !is_option(name);
        let fields = found.iter().filter(|(name, _)| passes(name)).cloned().collect();
        Ok(Self { status, fields, body, refusal })
    }
}

impl core::fmt::Debug for HttpResponse {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("HttpResponse([redacted])")
    }
}

#[cfg(test)]
mod tests;
