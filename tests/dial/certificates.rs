//! Peers with oversized certificates and handshake datagrams.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use dimpl::{Config, Dtls, DtlsCertificate, Output};
use rcgen::{CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256};
use sha2::{Digest as _, Sha256};
use umbel::{
    base::{DialTarget, Instant, LinkEvent, Transmit},
    transport::{
        Transport,
        native::{Endpoint, Port, PortUse, SocketRoute},
    },
};

use super::world::{client_config, relay_config, target};

/// Sizes of the extension that makes a certificate long, in bytes.
const EXTENSIONS: [usize; 11] = [0, 3_000, 4_500, 6_500, 8_192, 11_000, 11_400, 12_000, 23_000, 40_960, 62_000];
/// Sizes of the peer's datagrams: ours, those of an Ethernet, and those that need IP fragmentation.
const DATAGRAMS: [usize; 3] = [1_232, 1_500, 65_000];

/// Longest certificate and longest handshake datagram that are accepted, in bytes.
const MAX_CERTIFICATE: usize = 4_096;
const MAX_HANDSHAKE_DATAGRAM: usize = 1_500;

/// Whether the handshake with such a certificate is completed, in datagrams of this size.
fn is_accepted(certificate: usize, datagram: usize) -> bool {
    // The other messages of the flight have less than 500 bytes.
    certificate <= MAX_CERTIFICATE && (certificate + 500).min(datagram) <= MAX_HANDSHAKE_DATAGRAM
}

/// Whether a datagram is a ClientHello.
fn is_hello(datagram: &[u8]) -> bool {
    (datagram[0], datagram[13]) == (22, 1)
}

/// A self-signed certificate with an extension of this many bytes.
fn certificate(extension: usize) -> DtlsCertificate {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55_555], vec![5; extension])];
    let certificate = params.self_signed(&key).unwrap().der().to_vec();
    DtlsCertificate { certificate, private_key: key.serialize_der() }
}

/// A peer that completes each handshake: a stock DTLS stack with wide limits.
struct Peer {
    machine: Dtls,
    buffer: Vec<u8>,
    connected: bool,
}

impl Peer {
    fn new(certificate: DtlsCertificate, datagram: usize, is_client: bool) -> Self {
        let config = Config::builder().mtu(datagram).max_queue_tx(1_000).max_queue_rx(1_000).build().unwrap();
        let now = StdInstant::now();
        let mut machine = Dtls::new_12(Arc::new(config), certificate, now);
        machine.set_active(is_client);
        machine.handle_timeout(now).unwrap();
        Self { machine, buffer: vec![0; 1 << 17], connected: false }
    }

    fn take_datagrams(&mut self) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        loop {
            match self.machine.poll_output(&mut self.buffer) {
                Output::Packet(packet) => sent.push(packet.to_vec()),
                Output::Timeout(_) => return sent,
                Output::Connected => self.connected = true,
                _ => {}
            }
        }
    }
}

fn endpoint(is_relay: bool) -> Endpoint {
    let config = if is_relay { relay_config() } else { client_config() };
    let purpose = if is_relay { PortUse::Listen } else { PortUse::Dial };
    let mut endpoint = Endpoint::new(config, StdInstant::now()).unwrap();
    endpoint.set_ports(&[Port { id: 0, purpose, ipv6: false }], 64);
    endpoint
}

fn take_datagrams(endpoint: &mut Endpoint, now: Instant) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut sent = Vec::new();
    while let Some(batch) = endpoint.poll_datagrams(now) {
        sent.extend(batch.bytes.chunks(batch.segment).map(|datagram| (batch.route.remote, datagram.to_vec())));
    }
    sent
}

fn deliver(endpoint: &mut Endpoint, now: Instant, remote: SocketAddr, datagram: &[u8]) {
    endpoint.handle_datagram(now, SocketRoute { port: 0, remote }, &mut datagram.to_vec());
}

/// Exchanges datagrams between `endpoint` and a peer at `remote` until both are silent. Returns those of the endpoint.
fn exchange(endpoint: &mut Endpoint, now: Instant, peer: &mut Peer, remote: SocketAddr) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    loop {
        let to_endpoint = peer.take_datagrams();
        to_endpoint.iter().for_each(|datagram| deliver(endpoint, now, remote, datagram));
        let to_peer = take_datagrams(endpoint, now);
        if to_endpoint.is_empty() && to_peer.is_empty() {
            return sent;
        }
        for (_, datagram) in to_peer {
            // The endpoint may have begun another attempt.
            let _ = peer.machine.handle_packet(&datagram);
            sent.push(datagram);
        }
    }
}

/// Whether an honest client opens a link to the relay.
fn opens(relay: &mut Endpoint, relay_address: SocketAddr, client: &mut Endpoint, mut now: Instant) -> bool {
    let client_address = SocketAddr::from(([198, 51, 100, 1], 9));
    client.handle_transmit(now, Transmit::Dial(target(relay, relay_address)));
    for _ in 0..200 {
        now = now.after(Duration::from_millis(10));
        relay.handle_timeout(now);
        client.handle_timeout(now);
        for (to, datagram) in take_datagrams(client, now) {
            if to == relay_address {
                deliver(relay, now, client_address, &datagram);
            }
        }
        for (to, datagram) in take_datagrams(relay, now) {
            if to == client_address {
                deliver(client, now, relay_address, &datagram);
            }
        }
        while let Some(event) = client.poll_link_event() {
            if matches!(event, LinkEvent::Opened { .. }) {
                return true;
            }
        }
    }
    false
}

#[test]
fn no_certificate_of_a_dialler_ends_a_relay() {
    let relay_address = SocketAddr::from(([192, 0, 2, 1], 4443));
    let mut relay = endpoint(true);
    let mut now = Instant::START;
    for (number, extension) in (1..).zip(EXTENSIONS) {
        for datagram in DATAGRAMS {
            now = now.after(Duration::from_millis(20));
            let certificate = certificate(extension);
            let length = certificate.certificate.len();
            let mut peer = Peer::new(certificate, datagram, true);
            let remote = SocketAddr::from(([203, 0, 113, number], datagram as u16));
            let links = relay.counts().links;
            exchange(&mut relay, now, &mut peer, remote);
            assert_eq!(peer.connected, is_accepted(length, datagram), "{length} bytes in datagrams of {datagram}");
            // A link whose certificate is lost in a long datagram stays half-open.
            let stays = length <= MAX_CERTIFICATE || datagram > MAX_HANDSHAKE_DATAGRAM;
            assert_eq!(relay.counts().links, links + usize::from(stays), "{length} bytes in datagrams of {datagram}");
        }
    }
    assert!(opens(&mut relay, relay_address, &mut endpoint(false), now));
}

#[test]
fn no_certificate_of_a_relay_ends_a_dialler() {
    let mut client = endpoint(false);
    let mut now = Instant::START;
    for (number, extension) in (1..).zip(EXTENSIONS) {
        for datagram in DATAGRAMS {
            for matches in [true, false] {
                now = now.after(Duration::from_millis(20));
                let certificate = certificate(extension);
                let remote = SocketAddr::from(([203, 0, 113, number], datagram as u16 + u16::from(matches)));
                let length = certificate.certificate.len();
                let mut fingerprint: [u8; 32] = Sha256::digest(&certificate.certificate).into();
                fingerprint[0] ^= u8::from(!matches);
                let target = DialTarget { fingerprint, ..target(&endpoint(true), remote) };
                client.handle_transmit(now, Transmit::Dial(target));
                let mut peer = Peer::new(certificate, datagram, false);
                let sent = exchange(&mut client, now, &mut peer, remote);
                let accepted = matches && is_accepted(length, datagram);
                assert_eq!(peer.connected, accepted, "{length} bytes in datagrams of {datagram}");
                // No datagram of the second flight leaves if the certificate is refused.
                let only_hellos = sent.iter().all(|datagram| is_hello(datagram));
                assert_eq!(only_hellos, !accepted, "{length} bytes in datagrams of {datagram}");
            }
        }
    }
    assert!(opens(&mut endpoint(true), ([192, 0, 2, 1], 4443).into(), &mut client, now));
}
