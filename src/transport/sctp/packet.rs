//! SCTP packets: encoding and decoding of chunks (RFC 9260 §3).
//!
//! Decoding borrows from the packet and allocates nothing. Encoding writes into the caller's buffer.

use super::{Broken, clock::Tick};

mod init;

pub(super) use init::{Init, OwnPeer, unrecognized};

/// Bytes of the common header.
pub(super) const HEADER: usize = 12;
/// Bytes of a DATA chunk before its payload.
pub(super) const DATA_HEADER: usize = 16;
/// Bytes of a SACK chunk before its gap ack blocks.
pub(super) const SACK_HEADER: usize = 16;
/// The port of both ends (RFC 8831 §6.2 allows any; WebRTC stacks use this one).
const PORT: u16 = 5000;
/// Bytes of a chunk before its body.
pub(super) const CHUNK_HEADER: usize = 4;

pub(super) const DATA: u8 = 0;
pub(super) const INIT: u8 = 1;
pub(super) const INIT_ACK: u8 = 2;
pub(super) const SACK: u8 = 3;
pub(super) const HEARTBEAT: u8 = 4;
pub(super) const HEARTBEAT_ACK: u8 = 5;
pub(super) const ABORT: u8 = 6;
pub(super) const SHUTDOWN: u8 = 7;
pub(super) const SHUTDOWN_ACK: u8 = 8;
pub(super) const ERROR: u8 = 9;
pub(super) const COOKIE_ECHO: u8 = 10;
pub(super) const COOKIE_ACK: u8 = 11;
pub(super) const SHUTDOWN_COMPLETE: u8 = 14;
pub(super) const I_DATA: u8 = 64;
pub(super) const RE_CONFIG: u8 = 130;
pub(super) const FORWARD_TSN: u8 = 192;
pub(super) const I_FORWARD_TSN: u8 = 194;
/// Arrival time of a TSN, between our nodes. Other stacks skip it without a report, as its two highest bits specify
/// (RFC 9260 §3.2).
pub(super) const ARRIVAL: u8 = 0x9f;
/// Bytes of an ARRIVAL chunk.
pub(super) const ARRIVAL_LEN: usize = 12;

/// Flags of a DATA chunk.
pub(super) const END: u8 = 1;
pub(super) const BEGIN: u8 = 2;
const UNORDERED: u8 = 4;
/// Requests an immediate acknowledgement (RFC 7053).
pub(super) const IMMEDIATE: u8 = 8;

/// Error cause Unrecognized Chunk Type (RFC 9260 §3.3.10.6).
const UNRECOGNIZED_CHUNK: u16 = 6;
/// Bytes of an error cause, or of a parameter, before its value.
const PARAMETER_HEADER: usize = 4;

/// CRC32c of a packet, with the checksum field taken as zero.
fn checksum(packet: &[u8]) -> Option<u32> {
    let (before, rest) = packet.split_at_checked(8)?;
    let (_, after) = rest.split_at_checked(4)?;
    Some(crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]), after))
}

/// A packet with a parsed header and a valid checksum.
pub(super) struct Packet<'a> {
    /// Verification tag.
    pub(super) tag: u32,
    chunks: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Parses the header and verifies the checksum. `zero_checksum`: this end announced that it accepts packets without
    /// a checksum.
    pub(super) fn parse(packet: &'a [u8], zero_checksum: bool) -> Option<Self> {
        let [p0, p1, q0, q1, t0, t1, t2, t3, c0, c1, c2, c3, chunks @ ..] = packet else { return None };
        if u16::from_be_bytes([*p0, *p1]) != PORT || u16::from_be_bytes([*q0, *q1]) != PORT {
            return None;
        }
        let sum = u32::from_le_bytes([*c0, *c1, *c2, *c3]);
        // RFC 9653 §5.2: a packet that begins with INIT or COOKIE ECHO always has a checksum.
        let may_lack = zero_checksum && !matches!(chunks.first(), Some(&INIT | &COOKIE_ECHO));
        if !(sum == 0 && may_lack) && checksum(packet) != Some(sum) {
            return None;
        }
        Some(Self { tag: u32::from_be_bytes([*t0, *t1, *t2, *t3]), chunks })
    }

    /// The chunks in order. A malformed chunk gives `None` and ends the iteration.
    pub(super) const fn chunks(&self) -> Chunks<'a> {
        Chunks { rest: self.chunks }
    }
}

/// One chunk.
pub(super) struct Chunk<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) body: &'a [u8],
    /// No chunk follows in its packet.
    pub(super) last: bool,
}

impl Chunk<'_> {
    /// Whether the chunk is unknown and its highest bit excludes the rest of the packet (RFC 9260 §3.2).
    pub(super) const fn ends_packet(&self) -> bool {
        self.kind & 0x80 == 0 && self.is_unknown()
    }

    /// Whether the chunk is unknown and its second highest bit requests an ERROR.
    pub(super) const fn requests_report(&self) -> bool {
        self.kind & 0x40 != 0 && self.is_unknown()
    }

    const fn is_unknown(&self) -> bool {
        !matches!(self.kind, DATA..=COOKIE_ACK | SHUTDOWN_COMPLETE | I_DATA | RE_CONFIG | FORWARD_TSN | I_FORWARD_TSN)
    }

    /// The chunk as in the packet, without padding, truncated to `max_len` bytes.
    pub(super) fn to_bytes(&self, max_len: usize) -> Vec<u8> {
        let length = u16::try_from(self.body.len().saturating_add(CHUNK_HEADER)).unwrap_or(u16::MAX).to_be_bytes();
        let head = [self.kind, self.flags].into_iter().chain(length);
        head.chain(self.body.iter().copied()).take(max_len).collect()
    }
}

/// The chunks of a packet in order.
pub(super) struct Chunks<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Option<Chunk<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = core::mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let [kind, flags, high, low, ..] = rest else { return Some(None) };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(body) = rest.get(CHUNK_HEADER..length) else { return Some(None) };
        // The last chunk's padding may be missing (RFC 9260 §3.2).
        self.rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Some(Chunk { kind: *kind, flags: *flags, body, last: self.rest.is_empty() }))
    }
}

/// Reads `N` bytes at `at`.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Reads a 32-bit number at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Reads a 16-bit number at `at`.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// A DATA chunk (RFC 9260 §3.3.1), ordered.
#[derive(Clone, Copy)]
pub(super) struct Data<'a> {
    pub(super) tsn: u32,
    pub(super) stream: u16,
    pub(super) sequence: u16,
    pub(super) protocol: u32,
    pub(super) begin: bool,
    pub(super) end: bool,
    pub(super) immediate: bool,
    pub(super) payload: &'a [u8],
}

impl<'a> Data<'a> {
    /// Parses the body of a DATA chunk.
    ///
    /// # Errors
    /// [`Broken`] on a truncated header, on unordered data and on data without payload. Lanes use none of these.
    pub(super) fn parse(chunk: &Chunk<'a>) -> Result<Self, Broken> {
        let [a, b, c, d, s0, s1, q0, q1, p0, p1, p2, p3, payload @ ..] = chunk.body else { return Err(Broken) };
        if payload.is_empty() || chunk.flags & UNORDERED != 0 {
            return Err(Broken);
        }
        Ok(Self {
            tsn: u32::from_be_bytes([*a, *b, *c, *d]),
            stream: u16::from_be_bytes([*s0, *s1]),
            sequence: u16::from_be_bytes([*q0, *q1]),
            protocol: u32::from_be_bytes([*p0, *p1, *p2, *p3]),
            begin: chunk.flags & BEGIN != 0,
            end: chunk.flags & END != 0,
            immediate: chunk.flags & IMMEDIATE != 0,
            payload,
        })
    }
}

/// A SACK chunk (RFC 9260 §3.3.4).
pub(super) struct Sack<'a> {
    pub(super) cumulative: u32,
    pub(super) window: u32,
    blocks: &'a [u8],
    pub(super) duplicates: usize,
}

impl<'a> Sack<'a> {
    /// Parses the body of a SACK chunk.
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let blocks = usize::from(u16_at(body, 8)?);
        let duplicates = usize::from(u16_at(body, 10)?);
        let rest = body.get(12..)?;
        if rest.len() != blocks.checked_add(duplicates)?.checked_mul(4)? {
            return None;
        }
        let blocks = rest.get(..blocks.checked_mul(4)?)?;
        Some(Self { cumulative: u32_at(body, 0)?, window: u32_at(body, 4)?, blocks, duplicates })
    }

    /// The gap ack blocks: first and last TSN of each as offsets from the cumulative TSN ack.
    pub(super) fn blocks(&self) -> impl ExactSizeIterator<Item = (u16, u16)> + '_ {
        self.blocks.chunks_exact(4).map(|block| (u16_at(block, 0).unwrap_or(0), u16_at(block, 2).unwrap_or(0)))
    }
}

/// An ARRIVAL chunk: the arrival time of the newest data that the following SACK acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) tsn: u32,
    /// On the peer's clock.
    pub(super) tick: Tick,
}

impl Arrival {
    /// Parses the body of an ARRIVAL chunk.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        Some(Self { tsn: u32_at(body, 0)?, tick: Tick(u32_at(body, 4)?) })
    }
}

/// Whether the body of a HEARTBEAT chunk is well-formed.
pub(super) fn is_heartbeat(body: &[u8]) -> bool {
    // One parameter, Heartbeat Info, that fills the chunk (RFC 9260 §3.3.5).
    u16_at(body, 0) == Some(1) && u16_at(body, 2).map(usize::from) == Some(body.len())
}

/// Writes one packet into a buffer. A field that exceeds the buffer is omitted; the caller checks [`Self::room`] first.
pub(super) struct PacketWriter<'a> {
    buffer: &'a mut [u8],
    length: usize,
    with_checksum: bool,
}

impl<'a> PacketWriter<'a> {
    /// A packet with this verification tag and no chunk. `zero_checksum`: the peer accepts packets without a checksum.
    pub(super) fn new(buffer: &'a mut [u8], tag: u32, zero_checksum: bool) -> Self {
        let mut this = Self { buffer, length: 0, with_checksum: !zero_checksum };
        this.put(&PORT.to_be_bytes());
        this.put(&PORT.to_be_bytes());
        this.put(&tag.to_be_bytes());
        this.put(&[0; 4]);
        this
    }

    /// Free bytes.
    pub(super) fn room(&self) -> usize {
        self.buffer.len().saturating_sub(self.length)
    }

    /// Whether the packet has no chunk.
    pub(super) const fn is_empty(&self) -> bool {
        self.length <= HEADER
    }

    /// Writes the checksum and returns the packet's length; zero for a packet without chunks.
    pub(super) fn finish(self) -> usize {
        if self.is_empty() {
            return 0;
        }
        let Some(packet) = self.buffer.get_mut(..self.length) else { return 0 };
        if self.with_checksum
            && let Some(sum) = checksum(packet)
            && let Some(field) = packet.get_mut(8..12)
        {
            field.copy_from_slice(&sum.to_le_bytes());
        }
        self.length
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.length.saturating_add(bytes.len());
        if let Some(place) = self.buffer.get_mut(self.length..end) {
            place.copy_from_slice(bytes);
            self.length = end;
        }
    }

    /// Writes the header of a chunk with a body of `length` bytes.
    fn begin(&mut self, kind: u8, flags: u8, length: usize) {
        let length = u16::try_from(length.saturating_add(CHUNK_HEADER)).unwrap_or(u16::MAX);
        self.put(&[kind, flags]);
        self.put(&length.to_be_bytes());
    }

    fn pad(&mut self) {
        let missing = self.length.next_multiple_of(4).saturating_sub(self.length);
        self.put([0; 3].get(..missing).unwrap_or_default());
    }

    #[cfg(test)]
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.put(bytes);
    }

    /// Writes a chunk with padding.
    pub(super) fn chunk(&mut self, kind: u8, flags: u8, body: &[u8]) {
        self.begin(kind, flags, body.len());
        self.put(body);
        self.pad();
    }

    #[cfg(test)]
    pub(super) fn data(&mut self, data: &Data<'_>) {
        self.data_in_pieces(data, data.payload.len(), core::iter::once(data.payload));
    }

    /// Writes a DATA chunk with the fields of `data`. Its payload is `pieces`, `length` bytes in total.
    pub(super) fn data_in_pieces<'b>(
        &mut self,
        data: &Data<'_>,
        length: usize,
        pieces: impl Iterator<Item = &'b [u8]>,
    ) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(data.begin, BEGIN) | flag(data.end, END) | flag(data.immediate, IMMEDIATE);
        self.begin(DATA, flags, length.saturating_add(DATA_HEADER - CHUNK_HEADER));
        self.put(&data.tsn.to_be_bytes());
        self.put(&data.stream.to_be_bytes());
        self.put(&data.sequence.to_be_bytes());
        self.put(&data.protocol.to_be_bytes());
        pieces.for_each(|piece| self.put(piece));
        self.pad();
    }

    /// Writes an ARRIVAL chunk.
    pub(super) fn arrival(&mut self, arrival: &Arrival) {
        self.begin(ARRIVAL, 0, ARRIVAL_LEN - CHUNK_HEADER);
        self.put(&arrival.tsn.to_be_bytes());
        self.put(&arrival.tick.0.to_be_bytes());
    }

    /// Writes a SACK chunk with as many gap ack blocks, then as many duplicate TSNs, as the buffer holds.
    pub(super) fn sack(
        &mut self,
        cumulative: u32,
        window: u32,
        blocks: impl Iterator<Item = (u16, u16)>,
        duplicates: &[u32],
    ) {
        let start = self.length;
        self.begin(SACK, 0, 0);
        self.put(&cumulative.to_be_bytes());
        self.put(&window.to_be_bytes());
        self.put(&[0; 4]);
        let (mut block_count, mut duplicate_count) = (0_u16, 0_u16);
        for (first, last) in blocks {
            if self.room() < 4 {
                break;
            }
            self.put(&first.to_be_bytes());
            self.put(&last.to_be_bytes());
            block_count = block_count.saturating_add(1);
        }
        for tsn in duplicates {
            if self.room() < 4 {
                break;
            }
            self.put(&tsn.to_be_bytes());
            duplicate_count = duplicate_count.saturating_add(1);
        }
        let length = u16::try_from(self.length.saturating_sub(start)).unwrap_or(u16::MAX);
        for (at, value) in [(2, length), (12, block_count), (14, duplicate_count)] {
            let at = start.saturating_add(at);
            if let Some(place) = self.buffer.get_mut(at..at.saturating_add(2)) {
                place.copy_from_slice(&value.to_be_bytes());
            }
        }
    }

    /// Writes an ERROR chunk that reports an unknown chunk ([`Chunk::to_bytes`]), truncated to the room. Returns
    /// `false` if the room is too small for the header of the unknown chunk.
    pub(super) fn unrecognized_chunk(&mut self, chunk: &[u8]) -> bool {
        let room = self.room().saturating_sub(CHUNK_HEADER).saturating_sub(PARAMETER_HEADER);
        // A truncated chunk fills the room, so that no padding is needed.
        let length = if chunk.len().next_multiple_of(4) <= room { chunk.len() } else { room & !3 };
        let Some(chunk) = chunk.get(..length).filter(|chunk| chunk.len() >= CHUNK_HEADER) else { return false };
        self.begin(ERROR, 0, length.saturating_add(PARAMETER_HEADER));
        self.parameter(UNRECOGNIZED_CHUNK, chunk);
        true
    }

    fn parameter(&mut self, kind: u16, value: &[u8]) {
        self.put(&kind.to_be_bytes());
        self.put(&u16::try_from(value.len().saturating_add(PARAMETER_HEADER)).unwrap_or(u16::MAX).to_be_bytes());
        self.put(value);
        self.pad();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let mut buffer = [0; 64];
        let mut writer = PacketWriter::new(&mut buffer, 7, false);
        writer.chunk(COOKIE_ACK, 0, &[]);
        let length = writer.finish();
        assert_eq!(length, 16);
        let packet = Packet::parse(&buffer[..length], false).unwrap();
        assert_eq!(packet.tag, 7);
        buffer[13] ^= 1;
        assert!(Packet::parse(&buffer[..length], true).is_none());
    }

    #[test]
    fn a_sack_holds_as_many_blocks_as_fit() {
        let mut buffer = [0; 12 + 16 + 9];
        let mut writer = PacketWriter::new(&mut buffer, 1, true);
        writer.sack(10, 20, [(2, 3), (5, 5), (7, 9)].into_iter(), &[4]);
        let length = writer.finish();
        let packet = Packet::parse(&buffer[..length], true).unwrap();
        let chunk = packet.chunks().next().unwrap().unwrap();
        let sack = Sack::parse(chunk.body).unwrap();
        assert_eq!((sack.cumulative, sack.window, sack.duplicates), (10, 20, 0));
        assert_eq!(sack.blocks().collect::<Vec<_>>(), [(2, 3), (5, 5)]);
    }

    #[test]
    fn an_arrival_decodes_as_encoded_and_other_stacks_skip_it_silently() {
        let arrival = Arrival { tsn: 0xfedc_ba98, tick: Tick(0x0123_4567) };
        let mut buffer = [0; 64];
        let mut writer = PacketWriter::new(&mut buffer, 1, true);
        writer.arrival(&arrival);
        let length = writer.finish();
        assert_eq!(length, HEADER + ARRIVAL_LEN);
        let packet = Packet::parse(&buffer[..length], true).unwrap();
        let chunk = packet.chunks().next().unwrap().unwrap();
        assert_eq!((chunk.kind, chunk.last, Arrival::parse(chunk.body)), (ARRIVAL, true, Some(arrival)));
        assert_eq!(chunk.kind >> 6, 0b10);
        assert_eq!(Arrival::parse(&chunk.body[..7]), None);
    }

    #[test]
    fn a_chunk_longer_than_its_packet_is_malformed() {
        let mut buffer = [0; 64];
        let mut writer = PacketWriter::new(&mut buffer, 1, true);
        writer.chunk(HEARTBEAT, 0, &[0, 1, 0, 8, 1, 2, 3, 4]);
        let length = writer.finish();
        buffer[15] = 200;
        let packet = Packet::parse(&buffer[..length], true).unwrap();
        assert!(packet.chunks().next().unwrap().is_none());
    }
}
