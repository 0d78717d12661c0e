//! INIT and INIT ACK, and their parameters (RFC 9260 §3.3.2, §3.3.3).

use super::{PARAMETER_HEADER, PacketWriter, RE_CONFIG, u16_at, u32_at};

/// Parameters of INIT and INIT ACK.
const STATE_COOKIE: u16 = 7;
const UNRECOGNIZED_PARAMETER: u16 = 8;
const SUPPORTED_EXTENSIONS: u16 = 0x8008;
/// RFC 9653 §4.
const ZERO_CHECKSUM: u16 = 0x8001;
/// The error detection method of RFC 9653 §4.1: SCTP over DTLS.
const METHOD_DTLS: u32 = 1;
/// Parameter between our nodes. Other stacks skip it without a report, as its two highest bits specify (RFC 9260
/// §3.2.1).
const OWN_PEER: u16 = 0x9f55;

/// Smallest receive window of an INIT or INIT ACK, in bytes. One with a smaller window is discarded (RFC 9260 §3.3.2,
/// §3.3.3).
const MIN_WINDOW: u32 = 1_500;
/// Most bytes of [`Init::unrecognized`]. The smallest packet holds them with all other parameters of INIT ACK.
const MAX_UNRECOGNIZED: usize = 256;

/// INIT or INIT ACK (RFC 9260 §3.3.2, §3.3.3).
pub(in super::super) struct Init<'a> {
    pub(in super::super) tag: u32,
    pub(in super::super) window: u32,
    pub(in super::super) outbound: u16,
    pub(in super::super) inbound: u16,
    pub(in super::super) tsn: u32,
    pub(in super::super) cookie: Option<&'a [u8]>,
    /// The sender accepts packets without a checksum.
    pub(in super::super) zero_checksum: bool,
    pub(in super::super) own: Option<OwnPeer>,
    /// Encoded Unrecognized Parameter parameters, the result of [`unrecognized`]. Written only; parsing ignores them.
    pub(in super::super) unrecognized: &'a [u8],
}

/// Parameters that our nodes exchange beyond RFC 9260.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct OwnPeer {
    /// Number of streams on which the sender accepts messages; they are numbered from 0.
    pub(in super::super) streams: u16,
    /// Longest delay of the sender's acknowledgements in milliseconds.
    pub(in super::super) ack_delay: u16,
}

impl<'a> Init<'a> {
    /// Parses the body; `None` if it is malformed or a value is forbidden.
    pub(in super::super) fn parse(body: &'a [u8]) -> Option<Self> {
        let mut init = Self {
            tag: u32_at(body, 0)?,
            window: u32_at(body, 4)?,
            outbound: u16_at(body, 8)?,
            inbound: u16_at(body, 10)?,
            tsn: u32_at(body, 12)?,
            cookie: None,
            zero_checksum: false,
            own: None,
            unrecognized: &[],
        };
        if init.tag == 0 || init.outbound == 0 || init.inbound == 0 || init.window < MIN_WINDOW {
            return None;
        }
        for parameter in parameters(body) {
            let (kind, whole) = parameter?;
            let value = whole.get(PARAMETER_HEADER..)?;
            match kind {
                STATE_COOKIE => init.cookie = Some(value),
                ZERO_CHECKSUM => init.zero_checksum = u32_at(value, 0) == Some(METHOD_DTLS),
                OWN_PEER => {
                    let (streams, ack_delay) = (u16_at(value, 0)?, u16_at(value, 2)?);
                    init.own = Some(OwnPeer { streams, ack_delay });
                }
                _ => {}
            }
        }
        Some(init)
    }
}

/// The types and bytes (with header, without padding) of the parameters in the body of INIT or INIT ACK. A malformed
/// parameter gives `None` and ends the iteration. An unknown parameter whose highest bit is clear is the last one
/// returned (RFC 9260 §3.2.1).
fn parameters(body: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    let mut rest = body.get(16..).unwrap_or_default();
    core::iter::from_fn(move || {
        let from = core::mem::take(&mut rest);
        if from.is_empty() {
            return None;
        }
        let (Some(kind), Some(length)) = (u16_at(from, 0), u16_at(from, 2).map(usize::from)) else { return Some(None) };
        let Some(whole) = from.get(..length).filter(|_| length >= PARAMETER_HEADER) else { return Some(None) };
        if kind & 0x8000 != 0 || is_known(kind) {
            rest = from.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(Some((kind, whole)))
    })
}

/// Whether a parameter type counts as known. The list includes types without effect here: addresses (RFC 9260 §3.3.2)
/// and Forward-TSN-Supported (RFC 3758). It omits types that every receiver skips silently if it does not support them.
const fn is_known(kind: u16) -> bool {
    const FORWARD_TSN_SUPPORTED: u16 = 0xc000;
    // 5 to 9: IPv4 address to cookie preservative. 11 and 12: host name address, supported address types.
    matches!(kind, 5..=9 | 11..=12 | FORWARD_TSN_SUPPORTED)
}

/// The report in INIT ACK of an INIT's unknown parameters whose second highest bit requests it (RFC 9260 §3.2.2). It
/// has at most [`MAX_UNRECOGNIZED`] bytes; a parameter that would exceed them is omitted.
pub(in super::super) fn unrecognized(body: &[u8]) -> Vec<u8> {
    let mut buffer = [0; MAX_UNRECOGNIZED];
    let mut writer = PacketWriter { buffer: &mut buffer, length: 0, with_checksum: false };
    for (kind, parameter) in parameters(body).flatten() {
        let length = parameter.len().saturating_add(PARAMETER_HEADER).next_multiple_of(4);
        if kind & 0x4000 != 0 && !is_known(kind) && length <= writer.room() {
            writer.parameter(UNRECOGNIZED_PARAMETER, parameter);
        }
    }
    let length = writer.length;
    buffer.get(..length).unwrap_or_default().to_vec()
}

impl PacketWriter<'_> {
    /// Writes an INIT or INIT ACK chunk.
    pub(in super::super) fn init(&mut self, kind: u8, init: &Init<'_>) {
        let mut body = [0_u8; 160 + MAX_UNRECOGNIZED];
        let mut inner = PacketWriter { buffer: &mut body, length: 0, with_checksum: false };
        inner.put(&init.tag.to_be_bytes());
        inner.put(&init.window.to_be_bytes());
        inner.put(&init.outbound.to_be_bytes());
        inner.put(&init.inbound.to_be_bytes());
        inner.put(&init.tsn.to_be_bytes());
        if let Some(cookie) = init.cookie {
            inner.parameter(STATE_COOKIE, cookie);
        }
        inner.put(init.unrecognized);
        // RE-CONFIG counts as supported: a stream reset ends the association.
        inner.parameter(SUPPORTED_EXTENSIONS, &[RE_CONFIG]);
        if init.zero_checksum {
            inner.parameter(ZERO_CHECKSUM, &METHOD_DTLS.to_be_bytes());
        }
        if let Some(own) = init.own {
            let [s0, s1] = own.streams.to_be_bytes();
            let [d0, d1] = own.ack_delay.to_be_bytes();
            inner.parameter(OWN_PEER, &[s0, s1, d0, d1]);
        }
        let length = inner.length;
        self.chunk(kind, 0, body.get(..length).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{INIT_ACK, Packet},
        *,
    };

    #[test]
    fn an_init_decodes_as_encoded() {
        let init = Init {
            tag: 1,
            window: MIN_WINDOW,
            outbound: 3,
            inbound: 4,
            tsn: 5,
            cookie: Some(&[6; 16]),
            zero_checksum: true,
            own: Some(OwnPeer { streams: 64, ack_delay: 25 }),
            unrecognized: &[],
        };
        let mut buffer = [0; 256];
        let mut writer = PacketWriter::new(&mut buffer, 0, false);
        writer.init(INIT_ACK, &init);
        let length = writer.finish();
        let packet = Packet::parse(&buffer[..length], false).unwrap();
        let chunk = packet.chunks().next().unwrap().unwrap();
        let read = Init::parse(chunk.body).unwrap();
        assert_eq!((read.tag, read.window, read.outbound, read.inbound, read.tsn), (1, MIN_WINDOW, 3, 4, 5));
        assert_eq!(read.cookie, Some(&[6; 16][..]));
        assert!(read.zero_checksum);
        assert_eq!(read.own, Some(OwnPeer { streams: 64, ack_delay: 25 }));
    }
}
