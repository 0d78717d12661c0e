//! A forged peer for tests: it sends single packets to an association and reads the answers.

use core::time::Duration;

use rand::{SeedableRng as _, rngs::StdRng};

use super::super::{
    Association, AssociationEvent, Close, Config,
    packet::{self, Data, Init, OwnPeer, Packet, PacketWriter, Sack},
};
use crate::base::Instant;

/// The forged peer's verification tag.
pub(super) const TAG: u32 = 0x0102_0304;

/// A chunk that the association sent.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) kind: u8,
    pub(super) body: Vec<u8>,
    /// The packet that contains it.
    pub(super) packet: Vec<u8>,
}

/// An association and its forged peer.
pub(super) struct ForgedPeer {
    pub(super) now: Instant,
    pub(super) association: Association,
    /// The association's verification tag.
    pub(super) tag: u32,
    /// The association's first TSN.
    pub(super) peer_tsn: u32,
    /// The forged peer's first TSN.
    pub(super) tsn: u32,
    pub(super) cookie: Vec<u8>,
    pub(super) messages: Vec<(u16, Vec<u8>)>,
    pub(super) open_streams: Option<u16>,
    pub(super) closed: Option<Close>,
    /// Number of packets passed to the association.
    delivered: u64,
}

/// The INIT of a stock peer.
pub(super) fn stock_init(tsn: u32) -> Init<'static> {
    Init {
        tag: TAG,
        window: 5 << 20,
        outbound: u16::MAX,
        inbound: u16::MAX,
        tsn,
        cookie: None,
        zero_checksum: false,
        own: None,
        unrecognized: &[],
    }
}

/// The INIT of one of our nodes.
pub(super) fn own_init(tsn: u32) -> Init<'static> {
    let own = Some(OwnPeer { streams: 64, ack_delay: 20 });
    Init { zero_checksum: true, own, outbound: 64, inbound: 64, ..stock_init(tsn) }
}

/// A whole message on stream 0.
pub(super) fn whole(tsn: u32, sequence: u16, payload: &[u8]) -> Data<'_> {
    Data { tsn, stream: 0, sequence, protocol: 53, begin: true, end: true, immediate: false, payload }
}

impl ForgedPeer {
    /// An association that listens.
    pub(super) fn listening(config: &Config) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        Self::new(Association::accept(config, now, &mut StdRng::seed_from_u64(7)), now)
    }

    /// An association that has sent its INIT.
    pub(super) fn connecting(config: &Config) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let mut this = Self::new(Association::connect(config, now, &mut StdRng::seed_from_u64(7)), now);
        let init = this.answer(packet::INIT);
        this.read_init(&init.body);
        this
    }

    fn new(association: Association, now: Instant) -> Self {
        Self {
            now,
            association,
            tag: 0,
            peer_tsn: 0,
            tsn: u32::MAX - 2,
            cookie: Vec::new(),
            messages: Vec::new(),
            open_streams: None,
            closed: None,
            delivered: 0,
        }
    }

    /// A listening association, dialled by a stock peer.
    pub(super) fn stock() -> Self {
        Self::established(&Config::new(1_195), &stock_init(u32::MAX - 2))
    }

    /// A listening association, dialled by one of our nodes.
    pub(super) fn own() -> Self {
        Self::established(&Config::new(1_195), &own_init(u32::MAX - 2))
    }

    /// A listening association, dialled by a peer with this INIT over a round trip of 50 ms.
    pub(super) fn established(config: &Config, init: &Init<'_>) -> Self {
        let mut this = Self::listening(config);
        this.tsn = init.tsn;
        this.init(packet::INIT, 0, init);
        let answer = this.answer(packet::INIT_ACK);
        this.read_init(&answer.body);
        this.wait(50);
        this.chunk(packet::COOKIE_ECHO, 0, &this.cookie.clone());
        this.answer(packet::COOKIE_ACK);
        assert!(this.open_streams.is_some() && this.closed.is_none());
        this
    }

    /// Stores tag, first TSN and cookie of an INIT or INIT ACK.
    pub(super) fn read_init(&mut self, body: &[u8]) {
        let init = Init::parse(body).expect("an INIT of ours is well-formed");
        (self.tag, self.peer_tsn) = (init.tag, init.tsn);
        self.cookie = init.cookie.unwrap_or_default().to_vec();
    }

    /// A packet for the association, with a checksum.
    pub(super) fn packet(&self, write: impl FnOnce(&mut PacketWriter<'_>)) -> Vec<u8> {
        packet_for(self.tag, write)
    }

    /// Passes a packet to the association.
    pub(super) fn deliver(&mut self, packet: &[u8]) {
        self.association.handle_packet(self.now, packet);
        self.note_events();
        self.delivered += 1;
        if self.delivered < 300 || self.delivered.is_multiple_of(97) {
            self.association.assert_invariants();
        }
        let (held, bound) = (self.association.held(), self.association.max_held());
        assert!(held <= bound, "{held} bytes held, {bound} allowed");
    }

    /// Passes a packet with the written chunks to the association.
    pub(super) fn send(&mut self, write: impl FnOnce(&mut PacketWriter<'_>)) {
        let packet = self.packet(write);
        self.deliver(&packet);
    }

    /// Sends one chunk in a packet.
    pub(super) fn chunk(&mut self, kind: u8, flags: u8, body: &[u8]) {
        self.send(|writer| writer.chunk(kind, flags, body));
    }

    /// Sends one DATA chunk in a packet.
    pub(super) fn data(&mut self, data: &Data<'_>) {
        self.send(|writer| writer.data(data));
    }

    /// Sends INIT or INIT ACK in a packet with this tag.
    pub(super) fn init(&mut self, kind: u8, tag: u32, init: &Init<'_>) {
        let packet = packet_for(tag, |writer| writer.init(kind, init));
        self.deliver(&packet);
    }

    /// Sends a SACK with gap ack blocks and duplicates.
    pub(super) fn sack(&mut self, cumulative: u32, window: u32, blocks: &[(u16, u16)], duplicates: &[u32]) {
        self.send(|writer| writer.sack(cumulative, window, blocks.iter().copied(), duplicates));
    }

    fn note_events(&mut self) {
        while let Some(event) = self.association.poll_event() {
            assert!(self.closed.is_none(), "no event follows the end");
            match event {
                AssociationEvent::Open { streams } => {
                    assert!(self.open_streams.replace(streams).is_none(), "open twice")
                }
                AssociationEvent::Message { stream, message } => self.messages.push((stream, message.to_vec())),
                AssociationEvent::Closed(close) => self.closed = Some(close),
            }
        }
    }

    /// All chunks that the association sends now.
    pub(super) fn answers(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        let mut buffer = [0; 1_195];
        for _ in 0..10_000 {
            let length = self.association.poll_packet(self.now, &mut buffer);
            if length == 0 {
                self.note_events();
                return answers;
            }
            let bytes = buffer[..length].to_vec();
            let packet = Packet::parse(&bytes, true).expect("a packet of ours is well-formed");
            answers.extend(packet.chunks().map(|chunk| {
                let chunk = chunk.expect("a chunk of ours is well-formed");
                Answer { kind: chunk.kind, body: chunk.body.to_vec(), packet: bytes.clone() }
            }));
        }
        panic!("the association sends packets without end");
    }

    /// The chunk of this kind that the association sends now; there must be exactly one.
    pub(super) fn answer(&mut self, kind: u8) -> Answer {
        let answers = self.answers();
        let kinds: Vec<_> = answers.iter().map(|answer| answer.kind).collect();
        let mut found = answers.into_iter().filter(|answer| answer.kind == kind);
        match (found.next(), found.next()) {
            (Some(answer), None) => answer,
            _ => panic!("one chunk {kind} expected among {kinds:?}"),
        }
    }

    /// The cumulative TSN ack of a SACK within a batch ([`Association::poll_acknowledgement`]); `None` without one.
    pub(super) fn sack_within_batch(&mut self) -> Option<u32> {
        let mut buffer = [0; 1_195];
        let length = self.association.poll_acknowledgement(self.now, &mut buffer);
        let packet = Packet::parse(buffer.get(..length).filter(|packet| !packet.is_empty())?, true).unwrap();
        let chunk = packet.chunks().next().unwrap().unwrap();
        assert!(chunk.last && chunk.kind == packet::SACK);
        Some(Sack::parse(chunk.body).unwrap().cumulative)
    }

    /// The cumulative TSN ack, window and gap ack blocks of the SACK that the association sends now.
    pub(super) fn answer_sack(&mut self) -> (u32, u32, Vec<(u16, u16)>) {
        let answer = self.answer(packet::SACK);
        let sack = Sack::parse(&answer.body).unwrap();
        (sack.cumulative, sack.window, sack.blocks().collect())
    }

    /// Advances the time and handles all timers that become due. The packets sent meanwhile are lost.
    pub(super) fn wait(&mut self, milliseconds: u64) {
        let until = self.now.after(Duration::from_millis(milliseconds));
        for _ in 0..100_000 {
            let Some(due) = self.association.poll_timeout().filter(|due| *due <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(due);
            self.association.handle_timeout(self.now);
            self.note_events();
            self.answers();
        }
        panic!("timers expire without end");
    }

    /// Queues a message of `length` bytes on stream 0.
    pub(super) fn queue(&mut self, length: usize) {
        self.association.send(self.now, 0, vec![1; length].into());
    }
}

/// A packet with this tag and a checksum.
pub(super) fn packet_for(tag: u32, write: impl FnOnce(&mut PacketWriter<'_>)) -> Vec<u8> {
    let mut buffer = [0; 1_500];
    let mut writer = PacketWriter::new(&mut buffer, tag, false);
    write(&mut writer);
    let length = writer.finish();
    buffer[..length].to_vec()
}
