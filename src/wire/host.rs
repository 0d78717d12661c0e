//! Codec of hosts and targets in BEGIN, CONNECTED, RESOLVE and RESOLVED (`proto/05-relay-messages.md`).

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{WireError, reader::Reader};

const MAX_HOST_LEN: usize = 255;
const HOST_IPV4: u8 = 4;
const HOST_IPV6: u8 = 6;
const HOST_NAME: u8 = 1;

/// The host of a stream's target or of a RESOLVE. Prints redacted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A DNS name as the application passed it: 1 to 255 ASCII letters, digits, `-`, `.` and `_`.
    Name(String),
    /// An address.
    Ip(IpAddr),
}

impl Host {
    /// Parses `text` as an IP address (IPv6 with or without brackets), otherwise as a DNS name.
    ///
    /// # Errors
    /// When `text` is empty, longer than 255 bytes, or has a character other than letters, digits, `-`, `.` and `_`.
    pub fn parse(text: &str) -> Result<Self, WireError> {
        let without_brackets = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = without_brackets.parse() {
            return Ok(Self::Ip(ip));
        }
        if text.is_empty() {
            return Err(WireError::Truncated("host"));
        }
        if text.len() > MAX_HOST_LEN {
            return Err(WireError::TooLong("host"));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if !text.bytes().all(allowed) {
            return Err(WireError::Invalid("host"));
        }
        Ok(Self::Name(text.to_owned()))
    }

    /// The host as text: the name, or the address without brackets.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Ip(ip) => ip.to_string(),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host([redacted])")
    }
}

/// The target of a stream. Prints redacted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The TCP port, never zero.
    pub port: u16,
}

/// One answer of a RESOLVED message.
#[derive(Clone, PartialEq, Eq)]
pub enum ResolvedAnswer {
    /// An address.
    Ip(IpAddr),
    /// A name, in answer to a RESOLVE of an address.
    Name(String),
}

impl fmt::Debug for ResolvedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResolvedAnswer([redacted])")
    }
}

pub(super) fn encode_host(host: &Host, out: &mut Vec<u8>) -> Result<(), WireError> {
    match host {
        Host::Ip(IpAddr::V4(ip)) => {
            out.push(HOST_IPV4);
            out.extend_from_slice(&ip.octets());
        }
        Host::Ip(IpAddr::V6(ip)) => {
            out.push(HOST_IPV6);
            out.extend_from_slice(&ip.octets());
        }
        Host::Name(name) => encode_name(name, out)?,
    }
    Ok(())
}

pub(super) fn encode_name(name: &str, out: &mut Vec<u8>) -> Result<(), WireError> {
    if !matches!(Host::parse(name)?, Host::Name(_)) {
        return Err(WireError::Invalid("host"));
    }
    out.push(HOST_NAME);
    out.push(u8::try_from(name.len()).map_err(|_| WireError::TooLong("host"))?);
    out.extend_from_slice(name.as_bytes());
    Ok(())
}

pub(super) fn decode_host(reader: &mut Reader<'_>) -> Result<Host, WireError> {
    match reader.u8()? {
        HOST_IPV4 => Ok(Host::Ip(IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?)))),
        HOST_IPV6 => Ok(Host::Ip(IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?)))),
        HOST_NAME => {
            let length = usize::from(reader.u8()?);
            let name = core::str::from_utf8(reader.take(length)?).map_err(|_| WireError::Invalid("host"))?;
            match Host::parse(name)? {
                Host::Name(name) => Ok(Host::Name(name)),
                Host::Ip(_) => Err(WireError::Invalid("host")),
            }
        }
        _ => Err(WireError::Invalid("host type")),
    }
}
