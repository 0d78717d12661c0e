//! Fuzz targets: datagrams to a relay's UDP port.

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
