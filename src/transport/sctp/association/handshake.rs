//! The handshake: INIT, INIT ACK, COOKIE ECHO, COOKIE ACK (RFC 9260 §5.1, §5.2).

use core::time::Duration;

use super::{
    super::{
        packet::{self, Init, OwnPeer, PacketWriter},
        receive::{AckPolicy, MAX_ACK_DELAY, ReceiveHalf},
    },
    Association, AssociationEvent, AssociationState, Close, STOCK_STREAMS, own_peer, stock_peer,
};
use crate::base::{Counter as _, Instant};

/// Longest cookie that is echoed, in bytes.
const MAX_COOKIE: usize = 1 << 10;
/// First timeout of INIT and COOKIE ECHO; doubled after each attempt.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(500);
/// Largest timeout of INIT and COOKIE ECHO.
const MAX_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// Attempts at a step of the handshake.
pub(super) struct Attempts {
    /// Number of packets sent.
    pub(super) made: u32,
    /// A packet must be sent.
    pub(super) due: bool,
    /// Time of the first attempt. It gives a round-trip sample if there was only one.
    pub(super) first_at: Instant,
    /// Time of the next attempt.
    pub(super) retry_at: Instant,
}

impl Attempts {
    pub(super) const fn new(now: Instant) -> Self {
        Self { made: 0, due: true, first_at: now, retry_at: now }
    }

    pub(super) fn sent(&mut self, now: Instant) {
        if self.made == 0 {
            self.first_at = now;
        }
        let wait =
            HANDSHAKE_TIMEOUT.saturating_mul(1_u32.checked_shl(self.made).unwrap_or(1)).min(MAX_HANDSHAKE_TIMEOUT);
        self.made.increment();
        self.due = false;
        self.retry_at = now.after(wait);
    }
}

impl Association {
    /// RFC 9260 §5.1 and §5.2.1: an INIT is answered but does not establish the association. Two crossing INITs make
    /// one association.
    pub(super) fn handle_init(&mut self, now: Instant, body: &[u8]) -> Result<(), Close> {
        let Some(init) = Init::parse(body) else { return Ok(()) };
        if self.peer_tsn.is_some_and(|tsn| tsn != init.tsn) || (self.peer_tag != 0 && self.peer_tag != init.tag) {
            // A restart (RFC 9260 §5.2.2) needs a new link.
            return Err(self.refuse(&init));
        }
        match self.state {
            AssociationState::Listening | AssociationState::CookieWait(_) => self.apply_init(now, &init)?,
            AssociationState::CookieEchoed(..) | AssociationState::Established => {}
            AssociationState::Ended => return Ok(()),
        }
        self.pending.init_ack = Some(packet::unrecognized(body));
        Ok(())
    }

    pub(super) fn handle_init_ack(&mut self, now: Instant, body: &[u8]) -> Result<(), Close> {
        let AssociationState::CookieWait(attempts) = &self.state else { return Ok(()) };
        let Some(init) = Init::parse(body) else { return Ok(()) };
        let Some(cookie) = init.cookie.filter(|cookie| (1..=MAX_COOKIE).contains(&cookie.len())) else {
            return Err(self.refuse(&init));
        };
        if self.peer_tsn.is_some_and(|tsn| tsn != init.tsn) || (self.peer_tag != 0 && self.peer_tag != init.tag) {
            return Err(self.refuse(&init));
        }
        if attempts.made == 1 {
            self.handshake_round_trip = Some(now.since(attempts.first_at));
        }
        let cookie = cookie.to_vec();
        self.apply_init(now, &init)?;
        if let Some(round_trip) = self.handshake_round_trip {
            self.send.add_round_trip(now, round_trip);
        }
        self.state = AssociationState::CookieEchoed(Attempts::new(now), cookie);
        self.events.push_back(AssociationEvent::Open { streams: self.streams() });
        Ok(())
    }

    /// Ends the association because of an INIT or INIT ACK. The ABORT has its Initiate Tag (RFC 9260 §5.1).
    const fn refuse(&mut self, init: &Init<'_>) -> Close {
        self.peer_tag = init.tag;
        Close::Broken
    }

    pub(super) fn handle_cookie_echo(&mut self, now: Instant, cookie: &[u8]) -> Result<(), Close> {
        if self.receive.is_none() || cookie != self.cookie {
            return Ok(());
        }
        match self.state {
            AssociationState::Listening | AssociationState::CookieWait(_) => {
                self.events.push_back(AssociationEvent::Open { streams: self.streams() });
                let round_trip = self.init_ack_at.filter(|_| self.init_acks == 1).map(|at| now.since(at));
                self.establish(now, round_trip);
            }
            AssociationState::CookieEchoed(..) => self.establish(now, None),
            AssociationState::Established => {}
            AssociationState::Ended => return Ok(()),
        }
        self.pending.cookie_ack = true;
        Ok(())
    }

    pub(super) fn establish(&mut self, now: Instant, round_trip: Option<Duration>) {
        self.state = AssociationState::Established;
        if let Some(round_trip) = round_trip {
            self.send.add_round_trip(now, round_trip);
        }
    }

    /// Applies the parameters of the peer's INIT or INIT ACK. The peer must accept at least as many streams as there
    /// are lanes.
    pub(super) fn apply_init(&mut self, now: Instant, init: &Init<'_>) -> Result<(), Close> {
        self.peer_tag = init.tag;
        self.peer_tsn = Some(init.tsn);
        self.zero_checksum = init.zero_checksum && self.config.zero_checksum;
        self.own_peer = init.own;
        let peer = init.own.map_or_else(stock_peer, own_peer);
        self.peer_streams = init.inbound;
        if init.inbound < STOCK_STREAMS {
            return Err(Close::Broken);
        }
        let streams = self.streams();
        self.send.set_peer(now, peer, init.window, streams);
        let windows = (self.config.initial_window, self.config.max_window);
        let ack_policy = if init.own.is_some() { AckPolicy::own(self.clock) } else { AckPolicy::STOCK };
        self.receive = Some(ReceiveHalf::new(now, init.tsn, streams, windows, ack_policy));
        Ok(())
    }

    /// Number of streams that carry messages.
    pub(super) fn streams(&self) -> u16 {
        let wanted = self.own_peer.map_or(STOCK_STREAMS, |own| own.streams);
        wanted.min(self.peer_streams).clamp(STOCK_STREAMS, self.config.streams.max(STOCK_STREAMS))
    }

    pub(super) fn write_init(&self, buffer: &mut [u8], kind: u8, tag: u32, unrecognized: &[u8]) -> usize {
        let mut writer = PacketWriter::new(buffer, tag, false);
        let streams = self.config.streams.max(STOCK_STREAMS);
        let ack_delay = u16::try_from(MAX_ACK_DELAY.as_millis()).unwrap_or(u16::MAX);
        writer.init(
            kind,
            &Init {
                tag: self.local_tag,
                window: u32::try_from(self.config.initial_window).unwrap_or(u32::MAX),
                outbound: streams,
                inbound: streams,
                tsn: self.local_tsn,
                cookie: (kind == packet::INIT_ACK).then_some(&self.cookie[..]),
                zero_checksum: self.config.zero_checksum,
                own: Some(OwnPeer { streams, ack_delay }),
                unrecognized,
            },
        );
        writer.finish()
    }
}
