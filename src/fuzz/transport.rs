//! Fuzz targets: datagrams to a relay's UDP port, from strangers, diallers and peers.

use std::{collections::BTreeSet, net::SocketAddr, time::Instant as StdInstant};

use super::{Choices, FuzzClock, FuzzTarget};
use crate::{
    base::{Instant, Transmit},
    transport::{
        Transport as _,
        native::{
            Certificate, CipherSuite, DirectionKey, Endpoint, EndpointConfig, Ice, KeyLimits, OVERHEAD, Opened, Port,
            PortUse, Records, SocketRoute,
        },
    },
};

pub(super) const TARGETS: &[FuzzTarget] = &[
    FuzzTarget { name: "udp_port", run: udp_port, seeds: udp_seeds },
    FuzzTarget { name: "dtls_handshake", run: dtls_handshake, seeds: handshake_seeds },
    FuzzTarget { name: "certificate", run: certificate, seeds: certificate_seeds },
    FuzzTarget { name: "dtls_records", run: dtls_records, seeds: record_seeds },
];

const LISTEN: Port = Port { id: 0, purpose: PortUse::Listen, ipv6: false };

/// Datagrams from unverified addresses create no link, and no answer is longer than the datagram that it answers.
#[allow(clippy::disallowed_methods, reason = "the start of the core's time; later times are passed in")]
fn udp_port(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut config = EndpointConfig::new(own_certificate());
    config.accept = Some(Ice::new("evtj", "VOkJxbRl1RmTxUk/WvJxBt").unwrap());
    let mut endpoint = Endpoint::new(config, StdInstant::now()).expect("valid settings");
    endpoint.set_ports(&[LISTEN], 1);
    let mut clock = FuzzClock::new();
    while !choices.is_empty() {
        let now = clock.advance(choices.u8());
        let remote = SocketAddr::from(([192, 0, 2, choices.u8() % 4], 4443));
        let mut datagram = choices.bytes().to_vec();
        endpoint.handle_datagram(now, SocketRoute { port: LISTEN.id, remote }, &mut datagram);
        while let Some(batch) = endpoint.poll_datagrams(now) {
            assert!(batch.bytes.len() <= datagram.len(), "more bytes sent than received");
        }
        assert_eq!(endpoint.counts().links, 0, "the input can't contain a valid cookie");
    }
}

/// A STUN check (RFC 5769 §2.1), a dialler's first ClientHello, and a sequence of both.
#[allow(clippy::disallowed_methods, reason = "the start of the core's time")]
fn udp_seeds() -> Vec<Vec<u8>> {
    const CHECK: &[u8] =
        b"000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff\
        80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249\
        c1b571a280280004e57a3bcf";
    let check = data_encoding::HEXLOWER.decode(CHECK).unwrap();
    let mut dialler = Endpoint::new(EndpointConfig::new(own_certificate()), StdInstant::now()).unwrap();
    dialler.set_ports(&[Port { purpose: PortUse::Dial, ..LISTEN }], 1);
    let target = crate::directory::fixture::listed(crate::directory::fixture::profile(1)).dial_target();
    dialler.handle_transmit(Instant::START, Transmit::Dial(target));
    let hello = dialler.poll_datagrams(Instant::START).unwrap().bytes.to_vec();
    let input = |datagram: &[u8]| {
        let length = u16::try_from(datagram.len()).unwrap().to_be_bytes();
        [&[0, 1], &length[..], datagram].concat()
    };
    vec![input(&check), input(&hello), [input(&check), input(&hello), input(&hello)].concat()]
}

/// The first address and port of a dialler.
fn dialler_route() -> SocketRoute {
    SocketRoute { port: LISTEN.id, remote: ([192, 0, 2, 7], 7).into() }
}

/// A listening endpoint, and the last hello of a dialler that has received its cookie.
#[allow(clippy::disallowed_methods, reason = "the start of the core's time; later times are passed in")]
fn with_cookie(now: Instant) -> (Endpoint, Vec<u8>) {
    let mut config = EndpointConfig::new(own_certificate());
    config.accept = Some(Ice::new("evtj", "VOkJxbRl1RmTxUk/WvJxBt").unwrap());
    let mut listener = Endpoint::new(config, StdInstant::now()).expect("valid settings");
    listener.set_ports(&[LISTEN], 1);
    let mut dialler = Endpoint::new(EndpointConfig::new(own_certificate()), StdInstant::now()).unwrap();
    dialler.set_ports(&[Port { purpose: PortUse::Dial, ..LISTEN }], 1);
    let target = crate::directory::fixture::listed(crate::directory::fixture::profile(1)).dial_target();
    dialler.handle_transmit(now, Transmit::Dial(target));
    let first = dialler.poll_datagrams(now).expect("a hello");
    let (relay, mut hello) = (first.route, first.bytes.to_vec());
    listener.handle_datagram(now, dialler_route(), &mut hello);
    let mut cookie = listener.poll_datagrams(now).expect("a HelloVerifyRequest").bytes.to_vec();
    dialler.handle_datagram(now, relay, &mut cookie);
    (listener, dialler.poll_datagrams(now).expect("a hello with the cookie").bytes.to_vec())
}

/// The fragments of a plaintext handshake message, of at most `fragment` bytes. A Certificate (kind 11) contains one
/// certificate.
fn handshake_message(kind: u8, sequence: u8, length: u16, fragment: u16, filler: u8) -> Vec<Vec<u8>> {
    let mut body = vec![filler; length.into()];
    if kind == 11 {
        for (at, length) in [(0, length.saturating_sub(3)), (3, length.saturating_sub(6))] {
            let length = u32::from(length).to_be_bytes();
            body.iter_mut().skip(at).zip(&length[1..]).for_each(|(byte, length)| *byte = *length);
        }
    }
    let whole = u32::from(length).to_be_bytes();
    let mut datagrams = Vec::new();
    for (number, part) in (0_u32..).zip(body.chunks(usize::from(fragment.max(1)))).take(64) {
        let offset = (number * u32::from(fragment.max(1))).to_be_bytes();
        let size = (part.len() as u32).to_be_bytes();
        let record = (part.len() as u16).saturating_add(12).to_be_bytes();
        let header = [&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, sequence, number as u8][..], &record].concat();
        datagrams.push([&header[..], &[kind], &whole[1..], &[0, sequence], &offset[1..], &size[1..], part].concat());
    }
    datagrams
}

/// No handshake message of a dialler with a valid cookie makes the endpoint panic, or opens its link.
fn dtls_handshake(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut clock = FuzzClock::new();
    let (mut endpoint, mut hello) = with_cookie(clock.0);
    endpoint.handle_datagram(clock.0, dialler_route(), &mut hello);
    assert_eq!(endpoint.counts().half_open, 1);
    while !choices.is_empty() {
        let now = clock.0;
        let datagrams = match choices.u8() % 4 {
            0 => vec![choices.bytes().to_vec()],
            1 => vec![choices.bytes().repeat(usize::from(choices.u8()))],
            2 => {
                clock.advance(choices.u8() % 12);
                Vec::new()
            }
            _ => {
                let (kind, sequence) = (choices.u8(), choices.u8());
                handshake_message(kind, sequence, choices.u16(), choices.u16(), choices.u8())
            }
        };
        for mut datagram in datagrams {
            endpoint.handle_datagram(now, dialler_route(), &mut datagram);
        }
        endpoint.handle_timeout(clock.0);
        while endpoint.poll_datagrams(clock.0).is_some() {}
        assert!(endpoint.counts().links <= 1 && endpoint.poll_link_event().is_none());
    }
}

/// Certificates of several lengths in datagrams of several lengths, the last one with other messages.
fn handshake_seeds() -> Vec<Vec<u8>> {
    let message = |kind: u8, sequence: u8, length: u16, fragment: u16| {
        let ([a, b], [c, d]) = (length.to_be_bytes(), fragment.to_be_bytes());
        [3, kind, sequence, a, b, c, d, 0x30]
    };
    let mut seeds: Vec<Vec<u8>> = [(300, 1_200), (5_000, 1_400), (20_000, 1_475), (40_000, 1_475), (60_000, 60_000)]
        .map(|(length, fragment)| message(11, 2, length, fragment).to_vec())
        .into();
    let [certificate, key_exchange, verify] =
        [message(11, 2, 3_000, 400), message(16, 3, 66, 66), message(15, 4, 76, 30)];
    seeds.push(
        [
            &certificate[..],
            &[2, 9],
            &key_exchange,
            &verify,
            &[0, 0, 14, 20, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 1],
        ]
        .concat(),
    );
    seeds
}

fn own_certificate() -> Certificate {
    Certificate::generate().expect("the system's cryptography works")
}

/// A decoded certificate encodes to the same bytes.
fn certificate(bytes: &[u8]) {
    let Ok(certificate) = Certificate::from_bytes(bytes) else { return };
    assert_eq!(certificate.to_bytes().unwrap().as_slice(), bytes);
    let config = EndpointConfig::new(certificate);
    let _ = format!("{config:?}");
}

fn certificate_seeds() -> Vec<Vec<u8>> {
    vec![own_certificate().to_bytes().unwrap().to_vec()]
}

/// The record layers of both ends of an association.
fn record_layers(suite: CipherSuite) -> [Records; 2] {
    let (key, iv) = match suite {
        CipherSuite::Aes128Gcm => (16, 4),
        CipherSuite::ChaCha20Poly1305 => (32, 12),
    };
    let direction = |fill: u8| DirectionKey::new(suite, &vec![fill; key], &vec![fill; iv]).unwrap();
    [(1, 2), (2, 1)].map(|(write, read)| {
        Records::new(suite, &direction(write), &direction(read), KeyLimits::default())
            .expect("keys of the right length")
    })
}

/// For modified, repeated, reordered or arbitrary datagrams of a peer, each opened record was sealed, and is opened
/// once.
fn dtls_records(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let [mut peer, mut ours] = record_layers(CipherSuite::ALL[usize::from(choices.u8() % 2)]);
    let (mut sealed, mut unopened) = (Vec::<Vec<u8>>::new(), BTreeSet::new());
    while !choices.is_empty() {
        let mut datagram = match choices.u8() % 4 {
            0 => {
                let packet = [&sealed.len().to_be_bytes(), choices.bytes()].concat();
                let mut buffer = vec![0; packet.len() + OVERHEAD];
                let header = peer.header_len();
                buffer[header..header + packet.len()].copy_from_slice(&packet);
                let length = peer.seal(&mut buffer, packet.len()).expect("far from any limit");
                buffer.truncate(length);
                sealed.push(buffer);
                unopened.insert(packet);
                continue;
            }
            // Up to three records in a datagram.
            1 => (0..=choices.u8() % 3)
                .flat_map(|_| sealed.get(usize::from(choices.u8())).cloned().unwrap_or_default())
                .collect(),
            2 => {
                let mut datagram = sealed.get(usize::from(choices.u8())).cloned().unwrap_or_default();
                let at = usize::from(choices.u16());
                datagram.iter_mut().skip(at).zip(choices.bytes()).for_each(|(byte, noise)| *byte ^= noise);
                datagram
            }
            _ => choices.bytes().to_vec(),
        };
        let mut packets = Vec::new();
        ours.open(&mut datagram, |opened| match opened {
            Opened::Data(packet) => packets.push(packet),
            other => unreachable!("{other:?} was never sealed"),
        })
        .expect("far from any limit");
        for packet in packets {
            assert!(unopened.remove(&datagram[packet]), "opened twice, or never sealed");
        }
    }
}

/// Three records and operations on them, for each suite.
fn record_seeds() -> Vec<Vec<u8>> {
    let seal = [0, 0, 3, 1, 2, 3];
    let operations = [
        &seal[..],
        &seal,
        &seal,
        // The second record; all records in one datagram; the first record, modified behind its header; a header alone.
        &[1, 0, 1],
        &[1, 2, 0, 1, 2],
        &[2, 0, 0, 13, 0, 1, 0x80],
        &[3, 0, 13, 23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 9, 0, 24],
    ]
    .concat();
    (0..2).map(|suite| [&[suite][..], &operations].concat()).collect()
}
