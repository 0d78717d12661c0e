//! Heads of HTTP/1.1 messages as bytes: field lines in their order, with the case of their names.

use std::{collections::HashSet, io};

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

use super::refusal::PortRefusal;
use crate::base::Counter as _;

/// Cap on bytes of the empty lines before a head (RFC 9112 §2.2).
const MAX_EMPTY_LINES_LEN: usize = 64;
/// Cap on the lines of a head.
const MAX_LINES: usize = 5_000;

/// One field line of a head.
#[derive(Clone, Copy)]
pub(super) struct FieldLine<'a> {
    /// The name; empty in an invalid line of a response.
    pub(super) name: &'a [u8],
    /// The value without the whitespace around it.
    pub(super) value: &'a [u8],
    /// The line after the name, from the colon on, without the line end.
    pub(super) rest: &'a [u8],
}

impl FieldLine<'_> {
    pub(super) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    pub(super) fn is_one_of(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.is(name))
    }

    /// Appends the line with its line end.
    pub(super) fn write(&self, head: &mut Vec<u8>) {
        head.extend_from_slice(self.name);
        head.extend_from_slice(self.rest);
        head.extend_from_slice(b"\r\n");
    }
}

/// The elements of all fields `name`, which are lists (RFC 9110 §5.6.1).
pub(super) fn list<'a>(fields: &'a [FieldLine<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let fields = fields.iter().filter(move |field| field.is(name));
    fields.flat_map(|field| field.value.split(|byte| *byte == b',')).map(trim).filter(|element| !element.is_empty())
}

/// Whether the list `name` has the element `wanted`.
pub(super) fn has(fields: &[FieldLine<'_>], name: &str, wanted: &str) -> bool {
    list(fields, name).any(|element| element.eq_ignore_ascii_case(wanted.as_bytes()))
}

/// The elements of the list `Connection` in lower case.
pub(super) struct ConnectionOptions(HashSet<Vec<u8>>);

impl ConnectionOptions {
    pub(super) fn of(fields: &[FieldLine<'_>]) -> Self {
        Self(list(fields, "connection").map(<[u8]>::to_ascii_lowercase).collect())
    }

    /// Whether the list names `field`. Such a field concerns one connection only. A field that delimits the message or
    /// names its host concerns all, regardless of `Connection`.
    pub(super) fn contains(&self, field: &FieldLine<'_>) -> bool {
        !field.is_one_of(&["host", "content-length", "transfer-encoding"])
            && self.0.contains(&field.name.to_ascii_lowercase())
    }
}

/// Whether `byte` may be part of a method or a field's name (RFC 9110 §5.6.2).
pub(super) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// Whether `byte` may be part of a field's value (RFC 9110 §5.5).
pub(super) const fn is_value(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

const fn is_blank(byte: &u8) -> bool {
    matches!(*byte, b' ' | b'\t')
}

pub(super) fn trim(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| !is_blank(byte)).unwrap_or(bytes.len());
    let bytes = bytes.get(start..).unwrap_or_default();
    trim_end(bytes)
}

pub(super) fn trim_end(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| !is_blank(byte)).map_or(0, |last| last.saturating_add(1));
    bytes.get(..end).unwrap_or_default()
}

/// A line without its line end, and whether the line end is CR LF.
pub(super) fn without_line_end(line: &[u8]) -> (&[u8], bool) {
    match line.strip_suffix(b"\r\n") {
        Some(line) => (line, true),
        None => (line.strip_suffix(b"\n").unwrap_or(line), false),
    }
}

/// Parses a field line of a request, in the head or in the trailer.
pub(super) fn strict_field(line: &[u8]) -> Result<FieldLine<'_>, PortRefusal> {
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, rest) = colon.and_then(|colon| line.split_at_checked(colon)).unwrap_or_default();
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(PortRefusal::bad_request("a header field of the request has an invalid name"));
    }
    if !rest.iter().copied().all(is_value) {
        return Err(PortRefusal::bad_request("a header field of the request has a control character"));
    }
    Ok(FieldLine { name, value: trim(rest.get(1..).unwrap_or_default()), rest })
}

/// Parses a field line of a response. Clears `is_strict` for a line that only some clients accept.
pub(super) fn lenient_field<'a>(line: &'a [u8], is_strict: &mut bool) -> FieldLine<'a> {
    let colon = line.iter().position(|byte| *byte == b':');
    let Some((before, rest)) = colon.and_then(|colon| line.split_at_checked(colon)) else {
        *is_strict = false;
        return FieldLine { name: &[], value: &[], rest: &[] };
    };
    let name = trim_end(before);
    *is_strict &= name.len() == before.len() && !name.is_empty() && name.iter().copied().all(is_token);
    *is_strict &= rest.iter().copied().all(is_value);
    FieldLine { name, value: trim(rest.get(1..).unwrap_or_default()), rest }
}

/// The reason why a head or line can't be read.
#[derive(Debug)]
pub(super) enum HeadError {
    /// The bytes end within the head.
    Truncated,
    /// The head exceeds the cap. Contains the bytes read.
    TooLarge(Vec<u8>),
    Io(io::Error),
}

/// Reads a head with the empty line at its end, at most `cap` bytes and [`MAX_LINES`] lines. `None` if the bytes end before the head.
pub(super) async fn read_head(
    reader: &mut (impl AsyncBufRead + Unpin),
    cap: usize,
) -> Result<Option<Vec<u8>>, HeadError> {
    let mut head = Vec::new();
    let (mut empty_lines_len, mut lines) = (0_usize, 0_usize);
    loop {
        let start = head.len();
        let limit = u64::try_from(cap.saturating_sub(start)).unwrap_or(u64::MAX);
        (&mut *reader).take(limit).read_until(b'\n', &mut head).await.map_err(HeadError::Io)?;
        let line = head.get(start..).unwrap_or_default();
        if line.last() != Some(&b'\n') {
            return match (head.len() >= cap, head.is_empty()) {
                (true, _) => Err(HeadError::TooLarge(head)),
                (false, true) => Ok(None),
                (false, false) => Err(HeadError::Truncated),
            };
        }
        if !without_line_end(line).0.is_empty() {
            lines.increment();
            if lines > MAX_LINES {
                return Err(HeadError::TooLarge(head));
            }
            continue;
        }
        if start > 0 {
            return Ok(Some(head));
        }
        empty_lines_len = empty_lines_len.saturating_add(head.len());
        head.clear();
        if empty_lines_len > MAX_EMPTY_LINES_LEN {
            return Err(HeadError::Truncated);
        }
    }
}
