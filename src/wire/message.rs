//! Relay messages: the messages between the origin and one hop inside the onion layers
//! (`proto/05-relay-messages.md`).
//!
//! | message | code | from | stream |
//! |---|---|---|---|
//! | BEGIN | 1 | origin | yes |
//! | CONNECTED | 2 | hop | yes |
//! | DATA | 3 | either | yes |
//! | DATA with a tag | 4 | either | yes |
//! | END | 5 | either | yes |
//! | RESOLVE | 6 | origin | yes |
//! | RESOLVED | 7 | hop | yes |
//! | CREDIT | 8 | either | yes |
//! | SENDME | 9 | either | no |
//! | EXTEND | 10 | origin | no |
//! | EXTENDED | 11 | hop | no |
//! | DROP | 12 | either | no |
//! | REQUEST | 13 | origin | yes |
//! | GONE | 14 | hop | no |

use core::{fmt, net::IpAddr};

use bytes::Bytes;

use crate::base::StreamId;

use super::{
    Host, ResolvedAnswer, Target, WireError,
    host::{decode_host, encode_host, encode_name},
    is_zero,
    reader::Reader,
};

/// Bytes of a relay message before its payload: kind 1, stream 2, payload length 2.
pub const MESSAGE_HEADER_LEN: usize = 5;
/// Bytes of the tag that a SENDME echoes.
pub const SENDME_TAG_LEN: usize = 16;
const MAX_ANSWERS: usize = 16;

/// The kind of a relay message, as its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MessageKind {
    /// Opens a stream.
    Begin = 1,
    /// The stream is open.
    Connected = 2,
    /// Bytes of a stream.
    Data = 3,
    /// Bytes of a stream after a tag that a SENDME must echo.
    TaggedData = 4,
    /// The sender has sent all its bytes, or the stream has failed.
    End = 5,
    /// Requests a name's addresses or an address's names.
    Resolve = 6,
    /// Answers RESOLVE.
    Resolved = 7,
    /// Permits the other end to send more bytes of a stream.
    Credit = 8,
    /// Echoes a tag, so that the other end may send more DATA cells of the circuit.
    SendMe = 9,
    /// Makes the circuit one hop longer.
    Extend = 10,
    /// Answers EXTEND.
    Extended = 11,
    /// No content: padding that only the receiver can distinguish from other messages.
    Drop = 12,
    /// Opens a stream to a service of the hop itself.
    Request = 13,
    /// Answers EXTEND: the hop can't reach the relay that EXTEND named. The circuit is unchanged.
    Gone = 14,
}

impl MessageKind {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Begin,
            2 => Self::Connected,
            3 => Self::Data,
            4 => Self::TaggedData,
            5 => Self::End,
            6 => Self::Resolve,
            7 => Self::Resolved,
            8 => Self::Credit,
            9 => Self::SendMe,
            10 => Self::Extend,
            11 => Self::Extended,
            12 => Self::Drop,
            13 => Self::Request,
            14 => Self::Gone,
            _ => return None,
        })
    }

    /// Whether an origin may send this kind to a hop.
    #[must_use]
    pub const fn from_origin(self) -> bool {
        !matches!(self, Self::Connected | Self::Resolved | Self::Extended | Self::Gone)
    }

    /// Whether a hop may send this kind to the origin.
    #[must_use]
    pub const fn from_hop(self) -> bool {
        !matches!(self, Self::Begin | Self::Resolve | Self::Extend | Self::Request)
    }

    const fn has_stream(self) -> bool {
        !matches!(self, Self::SendMe | Self::Extend | Self::Extended | Self::Drop | Self::Gone)
    }
}

/// The reason for the end of a stream, as a coarse code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EndReason {
    /// The sender has sent all its bytes; the other direction stays open (TCP's half-close). Any other reason ends both
    /// directions.
    Done = 1,
    /// The target refused the TCP connection.
    Refused = 2,
    /// The target or its network is unreachable.
    Unreachable = 3,
    /// The exit policy forbids the target.
    Policy = 4,
    /// The target did not answer in time.
    TimedOut = 5,
    /// The name has no address, or the address no name.
    NotFound = 6,
    /// The TCP connection was reset after it was open.
    Reset = 7,
    /// A limit of the exit or of the client is reached.
    ResourceLimit = 8,
    /// Any other failure.
    Failed = 9,
    /// The exit's resolver failed, so whether the name has an address is unknown.
    LookupFailed = 10,
}

impl fmt::Display for EndReason {
    /// The reason, for the user of the stream.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "the other end has sent all its bytes",
            Self::Refused => "the target refused the connection",
            Self::Unreachable => "the exit can't reach the target",
            Self::Policy => "the exit's policy does not allow this target",
            Self::TimedOut => "the target did not answer in time",
            Self::NotFound => "the name has no address",
            Self::Reset => "the stream was reset",
            Self::ResourceLimit => "a resource limit of the exit is reached",
            Self::Failed => "the stream failed",
            Self::LookupFailed => "the exit can't resolve the name: its name server failed, refused or did not answer",
        })
    }
}

impl EndReason {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Done,
            2 => Self::Refused,
            3 => Self::Unreachable,
            4 => Self::Policy,
            5 => Self::TimedOut,
            6 => Self::NotFound,
            7 => Self::Reset,
            8 => Self::ResourceLimit,
            9 => Self::Failed,
            10 => Self::LookupFailed,
            _ => return None,
        })
    }
}

/// A service that a hop performs for an origin (`proto/09-delegated.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Service {
    /// A query to a search engine.
    Search = 1,
    /// An HTTP request.
    Http = 2,
}

impl Service {
    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Search),
            2 => Some(Self::Http),
            _ => None,
        }
    }
}

/// A message between the origin and one hop. A cell holds one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayMessage {
    /// Open a stream to a target.
    Begin {
        /// The new stream.
        stream: StreamId,
        /// The target.
        target: Target,
    },
    /// The stream is open.
    Connected {
        /// The stream.
        stream: StreamId,
        /// The address that the hop connected to, if the hop reports the address.
        address: Option<IpAddr>,
    },
    /// Bytes of a stream.
    Data {
        /// The stream.
        stream: StreamId,
        /// Random bytes that the receiver echoes in a SENDME.
        tag: Option<[u8; SENDME_TAG_LEN]>,
        /// The bytes, never empty.
        bytes: Bytes,
    },
    /// The end of a stream, or of one direction of a stream.
    End {
        /// The stream.
        stream: StreamId,
        /// The reason.
        reason: EndReason,
    },
    /// A query to the hop's resolver.
    Resolve {
        /// A stream identifier for the answer.
        stream: StreamId,
        /// A name (requests its addresses) or an address (requests its names).
        host: Host,
    },
    /// The answers to RESOLVE, at least one; a failure is an END.
    Resolved {
        /// The stream identifier of RESOLVE.
        stream: StreamId,
        /// Seconds for which the answers may be cached.
        ttl: u32,
        /// The answers, 1 to 16.
        answers: Vec<ResolvedAnswer>,
    },
    /// The other end may send `bytes` more of this stream.
    Credit {
        /// The stream.
        stream: StreamId,
        /// Bytes, never zero.
        bytes: u32,
    },
    /// Echo of a tag.
    SendMe {
        /// The tag.
        tag: [u8; SENDME_TAG_LEN],
    },
    /// A fragment of an EXTEND body (`proto/04-handshake.md`).
    Extend {
        /// The fragment.
        fragment: Bytes,
    },
    /// A fragment of an EXTENDED body.
    Extended {
        /// The fragment.
        fragment: Bytes,
    },
    /// No content: padding.
    Drop,
    /// Open a stream to a service of the hop itself. The stream is open without an answer.
    Request {
        /// The new stream.
        stream: StreamId,
        /// The service.
        service: Service,
    },
    /// The hop can't reach the relay that EXTEND named.
    Gone,
}

impl RelayMessage {
    /// The message's kind.
    #[must_use]
    pub const fn kind(&self) -> MessageKind {
        match self {
            Self::Begin { .. } => MessageKind::Begin,
            Self::Connected { .. } => MessageKind::Connected,
            Self::Data { tag: None, .. } => MessageKind::Data,
            Self::Data { tag: Some(_), .. } => MessageKind::TaggedData,
            Self::End { .. } => MessageKind::End,
            Self::Resolve { .. } => MessageKind::Resolve,
            Self::Resolved { .. } => MessageKind::Resolved,
            Self::Credit { .. } => MessageKind::Credit,
            Self::SendMe { .. } => MessageKind::SendMe,
            Self::Extend { .. } => MessageKind::Extend,
            Self::Extended { .. } => MessageKind::Extended,
            Self::Drop => MessageKind::Drop,
            Self::Request { .. } => MessageKind::Request,
            Self::Gone => MessageKind::Gone,
        }
    }

    /// The stream of the message, if its kind has one.
    #[must_use]
    pub const fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Begin { stream, .. }
            | Self::Connected { stream, .. }
            | Self::Data { stream, .. }
            | Self::End { stream, .. }
            | Self::Resolve { stream, .. }
            | Self::Resolved { stream, .. }
            | Self::Credit { stream, .. }
            | Self::Request { stream, .. } => Some(*stream),
            Self::SendMe { .. } | Self::Extend { .. } | Self::Extended { .. } | Self::Drop | Self::Gone => None,
        }
    }

    /// Appends the message to `out`, without padding.
    ///
    /// # Errors
    /// When a field is longer than its length field can encode, or has a value that [`Self::decode`] rejects. The
    /// module `onion` checks whether the message fits the hop's layer.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        out.push(self.kind() as u8);
        out.extend_from_slice(&self.stream().map_or(0, StreamId::value).to_be_bytes());
        let length_at = out.len();
        out.extend_from_slice(&[0, 0]);
        let payload_at = out.len();
        self.encode_payload(out)?;
        let length = u16::try_from(out.len().saturating_sub(payload_at)).map_err(|_| WireError::TooLong("message"))?;
        if let Some(field) = out.get_mut(length_at..payload_at) {
            field.copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    }

    fn encode_payload(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Self::Begin { target, .. } => {
                if target.port == 0 {
                    return Err(WireError::Invalid("port"));
                }
                out.extend_from_slice(&target.port.to_be_bytes());
                encode_host(&target.host, out)
            }
            Self::Connected { address, .. } => {
                if let Some(address) = address {
                    encode_host(&Host::Ip(*address), out)?;
                }
                Ok(())
            }
            Self::Data { tag, bytes, .. } => {
                if bytes.is_empty() {
                    return Err(WireError::Truncated("data"));
                }
                if let Some(tag) = tag {
                    out.extend_from_slice(tag);
                }
                out.extend_from_slice(bytes);
                Ok(())
            }
            Self::End { reason, .. } => {
                out.push(*reason as u8);
                Ok(())
            }
            Self::Resolve { host, .. } => encode_host(host, out),
            Self::Resolved { ttl, answers, .. } => {
                if !(1..=MAX_ANSWERS).contains(&answers.len()) {
                    return Err(WireError::Invalid("answers"));
                }
                out.extend_from_slice(&ttl.to_be_bytes());
                for answer in answers {
                    match answer {
                        ResolvedAnswer::Ip(ip) => encode_host(&Host::Ip(*ip), out)?,
                        ResolvedAnswer::Name(name) => encode_name(name, out)?,
                    }
                }
                Ok(())
            }
            Self::Credit { bytes, .. } => {
                if *bytes == 0 {
                    return Err(WireError::Invalid("credit"));
                }
                out.extend_from_slice(&bytes.to_be_bytes());
                Ok(())
            }
            Self::SendMe { tag } => {
                out.extend_from_slice(tag);
                Ok(())
            }
            Self::Extend { fragment } | Self::Extended { fragment } => {
                out.extend_from_slice(fragment);
                Ok(())
            }
            Self::Drop | Self::Gone => Ok(()),
            Self::Request { service, .. } => {
                out.push(*service as u8);
                Ok(())
            }
        }
    }

    /// Decodes the message at the start of `plaintext`, the whole content of a layer. The bytes after the message must
    /// be zero.
    ///
    /// # Errors
    /// When the kind is unknown, a length does not fit, a field is not valid, or the padding isn't zero.
    pub fn decode(plaintext: &Bytes) -> Result<Self, WireError> {
        let mut header = Reader::new(plaintext, "message header");
        let kind = MessageKind::from_code(header.u8()?).ok_or(WireError::Invalid("message kind"))?;
        let stream = header.u16()?;
        let length = usize::from(header.u16()?);
        let payload_end = MESSAGE_HEADER_LEN.saturating_add(length);
        if payload_end > plaintext.len() {
            return Err(WireError::Truncated("message payload"));
        }
        if !plaintext.get(payload_end..).is_some_and(is_zero) {
            return Err(WireError::TrailingBytes("message"));
        }
        let payload = plaintext.slice(MESSAGE_HEADER_LEN..payload_end);
        match (kind.has_stream(), StreamId::new(stream)) {
            (true, Some(stream)) => Self::decode_of_stream(kind, stream, &payload),
            (false, None) => Self::decode_of_circuit(kind, payload),
            _ => Err(WireError::Invalid("message stream identifier")),
        }
    }

    fn decode_of_stream(kind: MessageKind, stream: StreamId, payload: &Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload, "message payload");
        let message = match kind {
            MessageKind::Begin => {
                let port = reader.u16()?;
                if port == 0 {
                    return Err(WireError::Invalid("port"));
                }
                Self::Begin { stream, target: Target { host: decode_host(&mut reader)?, port } }
            }
            MessageKind::Connected => {
                let address = if reader.is_empty() { None } else { Some(decode_host(&mut reader)?) };
                match address {
                    None => Self::Connected { stream, address: None },
                    Some(Host::Ip(ip)) => Self::Connected { stream, address: Some(ip) },
                    Some(Host::Name(_)) => return Err(WireError::Invalid("connected address")),
                }
            }
            MessageKind::Data => Self::Data { stream, tag: None, bytes: reader.remaining(payload)? },
            MessageKind::TaggedData => {
                let tag = Some(reader.array()?);
                Self::Data { stream, tag, bytes: reader.remaining(payload)? }
            }
            MessageKind::End => Self::End {
                stream,
                reason: EndReason::from_code(reader.u8()?).ok_or(WireError::Invalid("end reason"))?,
            },
            MessageKind::Resolve => Self::Resolve { stream, host: decode_host(&mut reader)? },
            MessageKind::Resolved => {
                let ttl = reader.u32()?;
                let mut answers = Vec::new();
                while !reader.is_empty() {
                    if answers.len() == MAX_ANSWERS {
                        return Err(WireError::TooLong("answers"));
                    }
                    answers.push(match decode_host(&mut reader)? {
                        Host::Ip(ip) => ResolvedAnswer::Ip(ip),
                        Host::Name(name) => ResolvedAnswer::Name(name),
                    });
                }
                if answers.is_empty() {
                    return Err(WireError::Truncated("answers"));
                }
                Self::Resolved { stream, ttl, answers }
            }
            MessageKind::Request => {
                let service = Service::from_code(reader.u8()?).ok_or(WireError::Invalid("service"))?;
                Self::Request { stream, service }
            }
            _ => {
                let bytes = reader.u32()?;
                if bytes == 0 {
                    return Err(WireError::Invalid("credit"));
                }
                Self::Credit { stream, bytes }
            }
        };
        reader.finish()?;
        Ok(message)
    }

    fn decode_of_circuit(kind: MessageKind, payload: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(&payload, "message payload");
        match kind {
            MessageKind::SendMe => {
                let tag = reader.array()?;
                reader.finish()?;
                Ok(Self::SendMe { tag })
            }
            MessageKind::Extend => Ok(Self::Extend { fragment: payload }),
            MessageKind::Extended => Ok(Self::Extended { fragment: payload }),
            MessageKind::Gone => {
                reader.finish()?;
                Ok(Self::Gone)
            }
            _ => {
                reader.finish()?;
                Ok(Self::Drop)
            }
        }
    }
}
