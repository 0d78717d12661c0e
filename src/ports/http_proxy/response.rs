//! Responses of targets: parsing with the leniency of common clients, and the head that is forwarded.
//!
//! A response in which clients could find another end than this port is forwarded with one unambiguous delimiter, and
//! the application's connection ends after it. So no bytes of a response can become the response of another target.

use super::{
    body::{Framing, parse_length},
    head::{self, ConnectionOptions, FieldLine, HeadError},
};
use crate::http_exchange::http1::ExchangeError;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

/// Fields that concern the connection to the target.
const HOP_BY_HOP: [&str; 6] =
    ["connection", "proxy-connection", "proxy-authenticate", "proxy-authorization", "keep-alive", "te"];

/// The reason why there is no head.
pub(super) enum NoResponse {
    /// The target sent no byte.
    Silent,
    Invalid(ExchangeError),
}

/// Reads the head of a response. A target that doesn't speak HTTP is detected at its first bytes.
pub(super) async fn read_head(reader: &mut (impl AsyncBufRead + Unpin), cap: usize) -> Result<Vec<u8>, NoResponse> {
    let first = reader.fill_buf().await.map_err(|_| NoResponse::Silent)?;
    if first.is_empty() {
        return Err(NoResponse::Silent);
    }
    let start = first.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(first.len());
    let start = first.get(start..).unwrap_or_default();
    let may_begin_with = |prefix: &[u8]| start.iter().zip(prefix).all(|(byte, expected)| byte == expected);
    if !may_begin_with(b"HTTP/1.") && !may_begin_with(b"ICY ") {
        return Err(NoResponse::Invalid(ExchangeError::NotHttp));
    }
    match head::read_head(reader, cap).await {
        Ok(Some(head)) => Ok(head),
        Ok(None) => Err(NoResponse::Silent),
        Err(HeadError::TooLarge(_)) => Err(NoResponse::Invalid(ExchangeError::TooLarge)),
        Err(HeadError::Truncated | HeadError::Io(_)) => Err(NoResponse::Invalid(ExchangeError::Broken)),
    }
}

/// The lines of a head with the line end CR LF, each field on one line (RFC 9112 §5.2), without the last line.
pub(super) struct ResponseLines {
    bytes: Vec<u8>,
    is_strict: bool,
}

impl ResponseLines {
    pub(super) fn new(head: &[u8]) -> Self {
        let (mut bytes, mut is_strict) = (Vec::with_capacity(head.len()), true);
        let mut fields = 0_usize;
        for (index, line) in head.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let (line, ends_with_crlf) = head::without_line_end(line);
            is_strict &= ends_with_crlf;
            if index > 0 && matches!(line.first(), Some(b' ' | b'\t')) {
                is_strict = false;
                // A continuation without a field to continue is dropped. As in curl, one blank stays.
                if fields > 0 {
                    let end = head::trim_end(head::without_line_end(&bytes).0).len();
                    bytes.truncate(end);
                    let content = head::trim(line);
                    let blanks = line.split(|byte| content.first() == Some(byte)).next().unwrap_or_default();
                    bytes.push(blanks.last().copied().unwrap_or(b' '));
                    bytes.extend_from_slice(content);
                    bytes.extend_from_slice(b"\r\n");
                }
            } else if !line.is_empty() {
                fields = fields.saturating_add(usize::from(index > 0));
                bytes.extend_from_slice(line);
                bytes.extend_from_slice(b"\r\n");
            }
        }
        // Some clients end a line at a CR (RFC 9112 §2.2).
        let mut at = 0_usize;
        while let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'\r')) {
            let cr = at.saturating_add(found);
            at = cr.saturating_add(1);
            if bytes.get(at) != Some(&b'\n')
                && let Some(byte) = bytes.get_mut(cr)
            {
                *byte = b' ';
                is_strict = false;
            }
        }
        Self { bytes, is_strict }
    }
}

/// The head of a response.
pub(super) struct ResponseHead<'a> {
    start: &'a [u8],
    pub(super) status: u16,
    is_http_1_1: bool,
    fields: Vec<FieldLine<'a>>,
    /// Whether the head has the exact syntax of HTTP.
    is_strict: bool,
}

impl<'a> ResponseHead<'a> {
    pub(super) fn parse(lines: &'a ResponseLines) -> Result<Self, ExchangeError> {
        let mut is_strict = lines.is_strict;
        let mut rest = lines.bytes.split_inclusive(|byte| *byte == b'\n').map(|line| head::without_line_end(line).0);
        let start = rest.next().unwrap_or_default();
        let (version, after) = start
            .iter()
            .position(|byte| *byte == b' ')
            .and_then(|space| start.split_at_checked(space))
            .ok_or(ExchangeError::NotHttp)?;
        // ICY is the version of Shoutcast's servers.
        let is_http_1_1 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" | b"ICY" => false,
            _ => return Err(ExchangeError::NotHttp),
        };
        let status = match head::trim(after) {
            [first @ b'1'..=b'9', second @ b'0'..=b'9', third @ b'0'..=b'9', after @ ..] => {
                is_strict &= matches!(after.first(), None | Some(b' '));
                [first, second, third].into_iter().fold(0_u16, |status, digit| {
                    status.saturating_mul(10).saturating_add(u16::from(digit.saturating_sub(b'0')))
                })
            }
            _ => return Err(ExchangeError::NotHttp),
        };
        is_strict &= start.iter().copied().all(head::is_value);
        // A NUL byte is valid for no client.
        if lines.bytes.contains(&0) {
            return Err(ExchangeError::NotHttp);
        }
        let fields: Vec<_> = rest.map(|line| head::lenient_field(line, &mut is_strict)).collect();
        Ok(Self { start, status, is_http_1_1, fields, is_strict })
    }

    pub(super) const fn is_interim(&self) -> bool {
        matches!(self.status, 100..=199)
    }

    /// Whether some clients take this interim response for the final one: any but 100 and 101. Such a client would take
    /// the final one for that of its next request, which may be to another target. So this response isn't forwarded.
    pub(super) const fn may_be_taken_as_final(&self) -> bool {
        matches!(self.status, 102..=199)
    }

    pub(super) const fn is_strict(&self) -> bool {
        self.is_strict
    }

    /// How the body is delimited (RFC 9112 §6.3).
    pub(super) fn framing(&mut self, is_answer_to_head: bool) -> Result<Framing, ExchangeError> {
        let codings: Vec<_> = head::list(&self.fields, "transfer-encoding")
            .filter(|coding| !coding.eq_ignore_ascii_case(b"identity"))
            .collect();
        let is_chunked = codings.last().is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
        let has_codings = !codings.is_empty();
        let lengths: Vec<_> = head::list(&self.fields, "content-length").collect();
        let (first_length, count) = (lengths.first().copied(), lengths.len());
        let is_consistent = lengths.iter().all(|length| Some(*length) == first_length);
        let all_digits = first_length.is_some_and(|length| length.iter().all(u8::is_ascii_digit));
        let length = first_length.and_then(parse_length);
        if count > 1 || (has_codings && count > 0) {
            self.is_strict = false;
        }
        if is_answer_to_head || matches!(self.status, 204 | 304) {
            return Ok(Framing::Empty);
        }
        match (has_codings, is_chunked, length) {
            (true, true, _) => Ok(Framing::Chunked),
            (true, false, _) => Ok(Framing::UntilClose),
            (false, _, Some(length)) if is_consistent => Ok(Framing::Length(length)),
            (false, _, None) if first_length.is_none() => Ok(Framing::UntilClose),
            // A length that no body has. The body ends with the connection, as for other clients.
            (false, _, None) if is_consistent && all_digits => {
                self.is_strict = false;
                Ok(Framing::UntilClose)
            }
            (false, ..) => Err(ExchangeError::NotHttp),
        }
    }

    /// Whether another response can follow on the connection to the target.
    pub(super) fn persists(&self, framing: Framing) -> bool {
        self.is_strict && self.is_http_1_1 && !matches!(framing, Framing::UntilClose) && !self.announces_end()
    }

    /// Whether the target announces the end of its connection.
    pub(super) fn announces_end(&self) -> bool {
        head::has(&self.fields, "connection", "close")
    }

    /// Whether the application's connection can carry another response after this one.
    pub(super) const fn is_unambiguous(&self, framing: Framing) -> bool {
        self.is_strict && self.is_http_1_1 && !matches!(framing, Framing::UntilClose)
    }

    /// The head for the application, without the fields that concern the connection to the target. `Connection`
    /// announces the end of the application's connection if `announces_end`.
    pub(super) fn to_application(&self, framing: Framing, announces_end: bool) -> Vec<u8> {
        let mut head = [self.start, b"\r\n"].concat();
        let options = ConnectionOptions::of(&self.fields);
        let upgrades = head::has(&self.fields, "connection", "upgrade");
        if announces_end {
            // First, because some clients end the head at an invalid line.
            head.extend_from_slice(b"Connection: close\r\n");
        }
        let mut has_length = false;
        for field in &self.fields {
            let is_hop_by_hop = field.is_one_of(&HOP_BY_HOP)
                || (!upgrades && field.is("upgrade"))
                || (!field.is("upgrade") && options.contains(field));
            let is_wrong_length = field.is("content-length")
                && match framing {
                    Framing::Length(_) => has_length,
                    Framing::Empty => self.status == 204 || self.is_interim(),
                    Framing::Chunked | Framing::UntilClose => true,
                };
            let is_wrong_coding = field.is("transfer-encoding")
                && (matches!(framing, Framing::Length(_)) || field.value.eq_ignore_ascii_case(b"identity"));
            // A line without a name is valid for some clients, and the end of the head for others.
            if field.name.is_empty() || is_hop_by_hop || is_wrong_length || is_wrong_coding {
                continue;
            }
            match framing {
                Framing::Length(length) if field.is("content-length") => {
                    has_length = true;
                    head.extend_from_slice(field.name);
                    head.extend_from_slice(format!(": {length}\r\n").as_bytes());
                }
                _ => field.write(&mut head),
            }
        }
        if upgrades {
            head.extend_from_slice(b"Connection: Upgrade\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}
