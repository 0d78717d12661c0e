//! What comes to a relay's UDP port.

use std::{net::SocketAddr, time::Instant as StdInstant};

use super::{Choices, Clock, Target};
use crate::{
    base::{Instant, Transmit},
    transport::{
        Transport as _,
        native::{Certificate, Endpoint, EndpointConfig, Ice, Port, PortUse, Route},
    },
};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "udp_port", run: udp_port, seeds: udp_seeds },
    Target { name: "certificate", run: certificate, seeds: certificate_seeds },
];

const LISTEN: Port = Port { id: 0, purpose: PortUse::Listen, ipv6: false };

/// Strangers' datagrams: no link comes of them, and no answer is longer than what it answers.
#[allow(clippy::disallowed_methods, reason = "the engine's origin of time; all that follows is handed in")]
fn udp_port(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut config = EndpointConfig::new(own_certificate());
    config.accept = Some(Ice::new("evtj", "VOkJxbRl1RmTxUk/WvJxBt").unwrap());
    let mut endpoint = Endpoint::new(config, StdInstant::now()).expect("sound settings");
    endpoint.set_ports(&[LISTEN], 1);
    let mut clock = Clock::new();
    while !choices.is_empty() {
        let now = clock.pass(choices.u8());
        let remote = SocketAddr::from(([192, 0, 2, choices.u8() % 4], 4443));
        let mut datagram = choices.bytes().to_vec();
        endpoint.handle_datagram(now, Route { port: LISTEN.id, remote }, &mut datagram);
        while let Some(batch) = endpoint.poll_datagrams(now) {
            assert!(batch.bytes.len() <= datagram.len(), "more comes out than went in");
        }
        assert_eq!(endpoint.counts().links, 0, "nobody can know the cookie's secret");
    }
}

/// A STUN check (RFC 5769 §2.1), a dialler's first hello, and both more than once.
#[allow(clippy::disallowed_methods, reason = "the engine's origin of time")]
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

fn certificate(bytes: &[u8]) {
    let Ok(certificate) = Certificate::from_bytes(bytes) else { return };
    assert_eq!(certificate.to_bytes().unwrap().as_slice(), bytes);
    let config = EndpointConfig::new(certificate);
    let _ = format!("{config:?}");
}

fn certificate_seeds() -> Vec<Vec<u8>> {
    vec![own_certificate().to_bytes().unwrap().to_vec()]
}
