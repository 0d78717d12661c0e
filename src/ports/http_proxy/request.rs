//! Requests to the HTTP proxy port: strict parsing, and the head that is forwarded.
//!
//! A request that a target could delimit in another way than this port is refused, so that no bytes of a request can
//! become a second one at the target (request smuggling).

use hyper::StatusCode;

use super::{
    body::Framing,
    head::{self, ConnectionOptions, FieldLine},
    refusal::PortRefusal,
};
use crate::wire::{Host, Target};

const HTTP_PORT: u16 = 80;
/// Fields that this port removes: they concern the connection to it.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "proxy-connection", "proxy-authorization", "proxy-authenticate", "keep-alive", "te", "upgrade"];

/// The head of a request.
pub(super) struct RequestHead<'a> {
    pub(super) method: &'a [u8],
    pub(super) target: &'a [u8],
    is_http_1_0: bool,
    pub(super) fields: Vec<FieldLine<'a>>,
}

impl<'a> RequestHead<'a> {
    /// Parses a whole head (RFC 9112 §2 to §5), without any of the permitted leniencies.
    pub(super) fn parse(head: &'a [u8]) -> Result<Self, PortRefusal> {
        let mut lines = head.split_inclusive(|byte| *byte == b'\n').map(line);
        let start = lines.next().unwrap_or(Ok(&[]))?;
        let mut words = start.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(PortRefusal::bad_request(
                "the request line is not a method, a URL without spaces and an HTTP version, with one space between them",
            ));
        };
        if method.is_empty() || !method.iter().copied().all(head::is_token) {
            return Err(PortRefusal::bad_request("the request's method has an invalid character"));
        }
        if target.is_empty() || !target.iter().all(|byte| matches!(byte, b'!'..=b'~' | 0x80..)) {
            return Err(PortRefusal::bad_request("the request's URL has a control character"));
        }
        let is_http_1_0 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            version if version.starts_with(b"HTTP/") => {
                return Err(PortRefusal::new(
                    StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                    "this port speaks HTTP/1.1 and HTTP/1.0 only; other versions pass over CONNECT",
                ));
            }
            _ => return Err(PortRefusal::bad_request("the request line has no HTTP version")),
        };
        let mut fields = Vec::new();
        for line in lines {
            let line = line?;
            if !line.is_empty() {
                fields.push(head::strict_field(line)?);
            }
        }
        if fields.iter().filter(|field| field.is("host")).count() > 1 {
            return Err(PortRefusal::bad_request("the request has several Host fields"));
        }
        Ok(Self { method, target, is_http_1_0, fields })
    }

    /// How the request's body is delimited (RFC 9112 §6.3).
    pub(super) fn framing(&self) -> Result<Framing, PortRefusal> {
        let mut codings = self.fields.iter().filter(|field| field.is("transfer-encoding"));
        let mut lengths = self.fields.iter().filter(|field| field.is("content-length"));
        match (codings.next(), lengths.next()) {
            (None, None) => Ok(Framing::Empty),
            (Some(_), Some(_)) => {
                Err(PortRefusal::bad_request("the request has both Content-Length and Transfer-Encoding"))
            }
            (Some(_), None) if self.is_http_1_0 => {
                Err(PortRefusal::bad_request("a request of HTTP/1.0 can't have Transfer-Encoding"))
            }
            (Some(coding), None) if coding.value.eq_ignore_ascii_case(b"chunked") && codings.next().is_none() => {
                Ok(Framing::Chunked)
            }
            (Some(_), None) => Err(PortRefusal::new(
                StatusCode::NOT_IMPLEMENTED,
                "the request's Transfer-Encoding is not supported; only chunked is",
            )),
            (None, Some(length)) => {
                let length = super::body::parse_length(length.value).filter(|_| lengths.next().is_none());
                length.map(Framing::Length).ok_or(PortRefusal::bad_request("the request's Content-Length is invalid"))
            }
        }
    }

    /// Whether the application may send another request on the connection. A request of HTTP/1.0 is the last.
    pub(super) fn persists(&self) -> bool {
        let closes = |name| head::has(&self.fields, name, "close");
        !self.is_http_1_0 && !closes("connection") && !closes("proxy-connection")
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == b"HEAD"
    }

    /// Whether the request may be sent a second time (RFC 9110 §9.2.2).
    pub(super) const fn is_idempotent(&self) -> bool {
        matches!(self.method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
    }

    pub(super) fn wants_upgrade(&self) -> bool {
        head::has(&self.fields, "connection", "upgrade") && self.fields.iter().any(|field| field.is("upgrade"))
    }

    pub(super) fn expects_continue(&self) -> bool {
        head::has(&self.fields, "expect", "100-continue")
    }

    /// The head for the target: in origin form, with `Host` from the URL, without the fields that concern the
    /// connection to this port. All other bytes are those of the application.
    pub(super) fn to_target(&self, url: &AbsoluteUrl<'_>) -> Vec<u8> {
        let mut head = [self.method, b" ", &url.origin_form(self.method)[..]].concat();
        head.extend_from_slice(if self.is_http_1_0 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
        let (wants_upgrade, wants_trailers) = (self.wants_upgrade(), head::has(&self.fields, "te", "trailers"));
        if !self.fields.iter().any(|field| field.is("host")) {
            write_host(&mut head, b"Host", url);
        }
        let options = ConnectionOptions::of(&self.fields);
        for field in &self.fields {
            if field.is("host") {
                // Another host would contradict the URL (RFC 9112 §3.2.2).
                match Target::of_authority(field.value, Some(HTTP_PORT)) {
                    Ok(target) if target == url.target => field.write(&mut head),
                    _ => write_host(&mut head, field.name, url),
                }
                continue;
            }
            let is_kept = match field.is_one_of(&HOP_BY_HOP) {
                true => wants_upgrade && field.is("upgrade"),
                // An upgrade has fields of its own, such as HTTP2-Settings, which are named in `Connection`.
                false => wants_upgrade || !options.contains(field),
            };
            if is_kept {
                field.write(&mut head);
            }
        }
        if wants_trailers {
            head.extend_from_slice(b"TE: trailers\r\n");
        }
        let mut options: Vec<&[u8]> = head::list(&self.fields, "connection")
            .filter(|option| {
                let is_one_of = |names: &[&str]| names.iter().any(|name| option.eq_ignore_ascii_case(name.as_bytes()));
                is_one_of(&["close", "keep-alive"])
                    || (wants_upgrade && !is_one_of(&["te", "proxy-connection", "proxy-authorization"]))
            })
            .collect();
        if wants_trailers {
            options.push(b"TE");
        }
        if !options.is_empty() {
            let name =
                self.fields.iter().find(|field| field.is("connection")).map_or(&b"Connection"[..], |field| field.name);
            head.extend_from_slice(name);
            head.extend_from_slice(b": ");
            head.extend_from_slice(&options.join(&b", "[..]));
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

fn write_host(head: &mut Vec<u8>, name: &[u8], url: &AbsoluteUrl<'_>) {
    for bytes in [name, b": ", url.authority, b"\r\n"] {
        head.extend_from_slice(bytes);
    }
}

fn line(line: &[u8]) -> Result<&[u8], PortRefusal> {
    match head::without_line_end(line) {
        (line, true) if !line.contains(&b'\r') => Ok(line),
        _ => Err(PortRefusal::bad_request("a line of the request does not end with CR LF")),
    }
}

/// An absolute URL that this port forwards.
pub(super) struct AbsoluteUrl<'a> {
    pub(super) target: Target,
    authority: &'a [u8],
    /// The path and the query.
    path: &'a [u8],
}

impl<'a> AbsoluteUrl<'a> {
    pub(super) fn parse(url: &'a [u8]) -> Result<Self, &'static str> {
        const SEPARATOR: &[u8] = b"://";
        let scheme_len = url.windows(SEPARATOR.len()).position(|bytes| bytes == SEPARATOR);
        let scheme = scheme_len.and_then(|length| url.get(..length)).filter(|scheme| {
            !scheme.is_empty() && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
        });
        let Some(scheme) = scheme else {
            return Err(
                "this is Umbel's HTTP proxy, not a web server; set it as the proxy of an application, whose requests \
                        must have an absolute URL (http://…) or use CONNECT",
            );
        };
        if ![&b"http"[..], b"ws"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Err("only http:// and ws:// URLs are forwarded; use CONNECT for others");
        }
        let rest = url.get(scheme.len().saturating_add(SEPARATOR.len())..).unwrap_or_default();
        let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, &[]));
        if authority.contains(&b'@') {
            return Err("a URL with a user name is not forwarded");
        }
        let target = Target::of_authority(authority, Some(HTTP_PORT)).map_err(|error| match error {
            AuthorityError::Host => "the host is neither a name nor an address",
            AuthorityError::Port => "the port is not a number from 1 to 65535",
        })?;
        let fragment = path.iter().position(|byte| *byte == b'#').unwrap_or(path.len());
        Ok(Self { target, authority, path: path.get(..fragment).unwrap_or_default() })
    }

    /// The request target in origin form, or in asterisk form (RFC 9112 §3.2).
    fn origin_form(&self, method: &[u8]) -> Vec<u8> {
        match self.path {
            [] if method == b"OPTIONS" => b"*".to_vec(),
            [b'/', ..] => self.path.to_vec(),
            path => [b"/", path].concat(),
        }
    }
}

/// The target of CONNECT.
pub(super) fn connect_target(authority: &[u8]) -> Result<Target, &'static str> {
    let target = Target::of_authority(authority, None);
    target.map_err(|_| "CONNECT needs a host and a port, such as example.org:443")
}

/// The invalid part of an authority.
enum AuthorityError {
    Host,
    Port,
}

impl Target {
    /// The target of `host`, `host:` or `host:port`.
    fn of_authority(authority: &[u8], default_port: Option<u16>) -> Result<Self, AuthorityError> {
        let text = core::str::from_utf8(authority).map_err(|_| AuthorityError::Host)?;
        let host_len = match text.starts_with('[') {
            true => text.find(']').map(|bracket| bracket.saturating_add(1)),
            false => text.find(':'),
        };
        let (host, port) = text.split_at_checked(host_len.unwrap_or(text.len())).ok_or(AuthorityError::Host)?;
        let host = Host::parse(host).map_err(|_| AuthorityError::Host)?;
        let port = match port {
            "" | ":" => default_port,
            _ => port
                .strip_prefix(':')
                .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|port| port.parse().ok().filter(|port| *port != 0)),
        };
        Ok(Self { host, port: port.ok_or(AuthorityError::Port)? })
    }
}
