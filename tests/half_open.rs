//! Memory of half-open links whose diallers make the DTLS handshake queue as much as it accepts. The test is alone in its
//! process, whose memory it measures.
#![cfg(target_os = "linux")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::{
    fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use dimpl::{Config, Dtls, Output};
use umbel::{
    base::Instant,
    transport::{
        Transport as _,
        native::{Certificate, Endpoint, EndpointConfig, Ice, Port, PortUse, SocketRoute},
    },
};

/// Number of half-open links, each of another network.
const LINKS: u16 = 200;
/// Datagrams that each dialler sends after its hello. One more ends the link.
const DATAGRAMS: u16 = 8;
/// Most bytes of a half-open link. Measured: 0.35 MB, 42 kB for a datagram of eight records.
const MAX_BYTES: usize = 450_000;

/// The resident memory of this process in bytes.
fn resident() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

/// A plaintext handshake record with one byte each of `fragments` Certificate messages, or one fragment of `length` bytes.
fn record(sequence: u16, message: u16, fragments: u16, length: u16) -> Vec<u8> {
    let mut body = Vec::new();
    for fragment in 0..fragments {
        let [high, low] = length.to_be_bytes();
        let [seq_high, seq_low] = (message + fragment).to_be_bytes();
        body.extend([11, 0, 0xf0, 0, seq_high, seq_low, 0, 0, 0, 0, high, low]);
        body.extend(vec![7; length.into()]);
    }
    let [high, low] = u16::try_from(body.len()).unwrap().to_be_bytes();
    let [seq_high, seq_low] = sequence.to_be_bytes();
    [&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, seq_high, seq_low, high, low][..], &body].concat()
}

/// Opens half-open links. Each dialler sends datagrams of `records` records with `fragments` fragments of `length`
/// bytes. Returns the relay and the bytes of a link.
fn half_open(records: u16, fragments: u16, length: u16) -> (Endpoint, usize) {
    let mut config = EndpointConfig::new(Certificate::generate().unwrap());
    config.accept = Some(Ice::new("umbelTest", "umbelumbelumbelumbelumbel").unwrap());
    let mut relay = Endpoint::new(config, StdInstant::now()).unwrap();
    relay.set_ports(&[Port { id: 0, purpose: PortUse::Listen, ipv6: false }], 64);
    let certificate = dimpl::certificate::generate_self_signed_certificate().unwrap();
    let dimpl_config = Arc::new(Config::default());
    let mut buffer = vec![0; 4_096];
    let (mut now, before) = (Instant::START, resident());
    for link in 0..LINKS {
        now = now.after(Duration::from_millis(3));
        relay.handle_timeout(now);
        let [high, low] = link.to_be_bytes();
        let route = SocketRoute { port: 0, remote: SocketAddr::from(([10, high, low, 1], 9)) };
        let mut dialler = Dtls::new_12(Arc::clone(&dimpl_config), certificate.clone(), StdInstant::now());
        dialler.set_active(true);
        dialler.handle_timeout(StdInstant::now()).unwrap();
        for _ in 0..2 {
            while let Output::Packet(packet) = dialler.poll_output(&mut buffer) {
                relay.handle_datagram(now, route, &mut packet.to_vec());
            }
            while let Some(batch) = relay.poll_datagrams(now) {
                if batch.route == route {
                    dialler.handle_packet(&batch.bytes[..batch.segment]).unwrap();
                }
            }
        }
        for number in 0..DATAGRAMS {
            let of_record = |at| record(number * 8 + at, 100 + number * 64 + at * 8, fragments, length);
            let mut datagram: Vec<_> = (0..records).flat_map(of_record).collect();
            relay.handle_datagram(now, route, &mut datagram);
            while relay.poll_datagrams(now).is_some() {}
        }
    }
    let bytes = resident().saturating_sub(before) / usize::from(LINKS);
    assert_eq!(relay.counts().half_open, usize::from(LINKS), "{records} records of {fragments} fragments");
    println!("{records} records, {fragments} fragments of {length} bytes: {bytes} bytes");
    (relay, bytes)
}

#[test]
fn a_half_open_link_holds_at_most_a_bound_of_memory() {
    // The relays stay, so that none uses the freed memory of another.
    let mut relays = Vec::new();
    for (records, fragments, length) in
        [(0, 0, 0), (1, 1, 1_475), (1, 1, 60_000), (1, 1, 1), (8, 1, 1), (8, 8, 1), (8, 8, 9), (8, 1, 160)]
    {
        let (relay, bytes) = half_open(records, fragments, length);
        relays.push(relay);
        assert!(bytes <= MAX_BYTES, "{bytes} bytes, with {records} records of {fragments} fragments of {length} bytes");
    }
}
