//! The end of a link: the last datagrams to a stock peer.

use core::ops::ControlFlow;
use std::time::Instant as StdInstant;

use super::*;
use crate::{
    base::LinkEvent,
    transport::{
        Transport as _,
        native::{Certificate, CipherSuite, Endpoint, EndpointConfig, Ice, KeyLimits, Port, PortUse, dtls::DtlsConfig},
    },
};

/// Types of SCTP chunks.
const DATA: u8 = 0;
const INIT: u8 = 1;
const SACK: u8 = 3;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const SHUTDOWN_COMPLETE: u8 = 14;
const RE_CONFIG: u8 = 130;

/// A relay, and a stock peer with an open link to it.
struct StockLink {
    now: Instant,
    clock: StdClock,
    relay: Endpoint,
    dtls: Dtls,
    out: Datagrams,
    /// The relay's verification tag.
    tag: [u8; 4],
    /// The SCTP packets of the relay.
    packets: Vec<Vec<u8>>,
    /// The relay has sent close_notify.
    closed: bool,
}

fn route() -> SocketRoute {
    SocketRoute { port: 0, remote: ([192, 0, 2, 1], 9).into() }
}

impl StockLink {
    fn open() -> Self {
        let start = StdInstant::now();
        let mut config = EndpointConfig::new(Certificate::generate().unwrap());
        config.accept = Some(Ice::new("umbelTest", "umbelumbelumbelumbelumbel").unwrap());
        let mut relay = Endpoint::new(config, start).unwrap();
        relay.set_ports(&[Port { id: 0, purpose: PortUse::Listen, ipv6: false }], 1);
        let dtls_config =
            DtlsConfig::new(1_232, Duration::from_secs(10), &CipherSuite::ALL, KeyLimits::default()).unwrap();
        let dtls = Dtls::dial(&dtls_config, &Certificate::generate().unwrap(), start).unwrap();
        let mut this = Self {
            now: Instant::START,
            clock: StdClock(start),
            relay,
            dtls,
            out: Datagrams::default(),
            tag: [0; 4],
            packets: Vec::new(),
            closed: false,
        };
        this.exchange(&[]);
        // Tag, window, numbers of streams, TSN.
        this.send(&[(INIT, 0, &[1, 2, 3, 4, 0, 0x10, 0, 0, 0, 9, 0, 9, 0, 0, 0, 1])]);
        let init_ack = this.packets.remove(0);
        this.tag.copy_from_slice(&init_ack[16..20]);
        let cookie = &init_ack[36..][..usize::from(init_ack[35]) - 4];
        this.send(&[(COOKIE_ECHO, 0, cookie)]);
        let opened = core::iter::from_fn(|| this.relay.poll_link_event());
        assert!(opened.into_iter().any(|event| matches!(event, LinkEvent::Opened { .. })));
        this.packets.clear();
        this
    }

    /// A record with one chunk in each packet of a datagram.
    fn seal(&mut self, chunks: &[(u8, u8, &[u8])]) -> Vec<u8> {
        let mut datagram = Vec::new();
        for (kind, flags, body) in chunks {
            let length = u16::try_from(body.len() + 4).unwrap().to_be_bytes();
            let tag = if *kind == INIT { [0; 4] } else { self.tag };
            let mut packet = [&[0x13, 0x88, 0x13, 0x88][..], &tag, &[0; 4], &[*kind, *flags], &length, body].concat();
            packet.resize(packet.len().next_multiple_of(4), 0);
            let sum = crc32c::crc32c(&packet).to_le_bytes();
            packet[8..12].copy_from_slice(&sum);
            let header = self.dtls.header_len();
            let mut buffer = vec![0; packet.len() + dtls::OVERHEAD];
            buffer[header..][..packet.len()].copy_from_slice(&packet);
            let sealed = self.dtls.seal(&mut buffer, packet.len()).unwrap();
            datagram.extend(&buffer[..sealed]);
        }
        datagram
    }

    fn send(&mut self, chunks: &[(u8, u8, &[u8])]) {
        let datagram = self.seal(chunks);
        self.exchange(&datagram);
    }

    /// Sends `datagram`, then what both ends have to send.
    fn exchange(&mut self, datagram: &[u8]) {
        if !datagram.is_empty() {
            self.relay.handle_datagram(self.now, route(), &mut datagram.to_vec());
        }
        self.drain(&[]);
        loop {
            while let Some(batch) = self.out.pop() {
                self.relay.handle_datagram(self.now, route(), &mut batch.bytes.to_vec());
            }
            let mut sent = Vec::new();
            while let Some(batch) = self.relay.poll_datagrams(self.now) {
                sent.push(batch.bytes.to_vec());
            }
            if sent.is_empty() {
                return;
            }
            for mut datagram in sent {
                self.dtls.handle_datagram(self.clock.to_std(self.now), &mut datagram).unwrap();
                self.drain(&datagram);
            }
        }
    }

    fn drain(&mut self, datagram: &[u8]) {
        self.dtls.drain(datagram, &mut self.out, route(), 1, |event| {
            match event {
                DtlsEvent::Packet(packet) => self.packets.push(packet.to_vec()),
                DtlsEvent::Closed => self.closed = true,
                DtlsEvent::PeerCertificate(_) | DtlsEvent::Connected => {}
            }
            ControlFlow::Continue(())
        });
    }

    /// The types of the first chunks of the relay's packets.
    fn kinds(&self) -> Vec<u8> {
        self.packets.iter().map(|packet| packet[12]).collect()
    }

    fn close(&mut self) -> Option<LinkClose> {
        core::iter::from_fn(|| self.relay.poll_link_event()).find_map(|event| match event {
            LinkEvent::Closed { reason, .. } => Some(reason),
            _ => None,
        })
    }
}

/// A whole message of one byte with the first TSN.
const MESSAGE: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 53, 7];

#[test]
fn a_link_that_sctp_ends_sends_abort_and_close_notify() {
    let reset = [0, 13, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (kind, body, reason) in [
        (SHUTDOWN, &[0; 4][..], LinkClose::ByPeer),
        (SHUTDOWN_ACK, &[], LinkClose::ByPeer),
        (RE_CONFIG, &reset, LinkClose::ByPeer),
        (DATA, &MESSAGE[..12], LinkClose::Broken),
    ] {
        let mut link = StockLink::open();
        link.send(&[(kind, 3, body)]);
        assert_eq!((link.kinds(), link.closed, link.close()), (vec![ABORT], true, Some(reason)), "kind {kind}");
        assert_eq!(link.packets[0][4..8], [1, 2, 3, 4], "the peer's tag");
    }
    // Chunks that end an association have no ABORT as answer.
    for kind in [ABORT, SHUTDOWN_COMPLETE] {
        let mut link = StockLink::open();
        link.send(&[(kind, 0, &[])]);
        assert_eq!((link.kinds(), link.closed, link.close()), (vec![], true, Some(LinkClose::ByPeer)), "kind {kind}");
    }
}

#[test]
fn no_record_follows_a_fatal_alert_or_an_answered_close_notify() {
    for fatal in [None, Some(true), Some(false)] {
        let mut link = StockLink::open();
        let mut datagram = link.seal(&[(DATA, 3, MESSAGE)]);
        if let Some(fatal) = fatal {
            let mut buffer = [0; 64];
            let length = link.dtls.seal_alert(&mut buffer, if fatal { [2, 40] } else { [1, 0] });
            datagram.extend(&buffer[..length]);
        }
        link.exchange(&datagram);
        // Without an alert, a SACK is due.
        let expected = if fatal.is_some() { vec![] } else { vec![SACK] };
        assert_eq!((link.kinds(), link.closed), (expected, fatal == Some(false)), "{fatal:?}");
        assert_eq!(link.close().is_some(), fatal.is_some());
    }
    // An ABORT is due, but the close_notify in the same datagram precedes it.
    let mut link = StockLink::open();
    let mut datagram = link.seal(&[(SHUTDOWN, 0, &[0; 4])]);
    let mut buffer = [0; 64];
    let length = link.dtls.seal_alert(&mut buffer, [1, 0]);
    datagram.extend(&buffer[..length]);
    link.exchange(&datagram);
    assert_eq!((link.kinds(), link.closed, link.close()), (vec![], true, Some(LinkClose::ByPeer)));
}
