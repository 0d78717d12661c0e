//! The attacker of DTLS handshakes: hellos with valid cookies, alternately with two client randoms from each port.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant as StdInstant},
};

use tokio::{
    net::UdpSocket,
    time::{MissedTickBehavior, interval, timeout},
};
use umbel::{
    base::{DialTarget, Instant, Transmit},
    transport::{
        Transport as _,
        native::{Certificate, Endpoint, EndpointConfig, Port, PortUse, SocketRoute},
    },
};

use super::Outcome;

/// Hellos in a millisecond, from all ports.
const HELLOS_A_MILLISECOND: usize = 10;
/// Interval between the collections of new cookies, shorter than the lifetime of a cookie.
const COOKIE_INTERVAL: Duration = Duration::from_secs(45);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
const TRIES: usize = 20;

/// A socket with two hellos, whose cookies are valid for it.
struct Sender {
    socket: UdpSocket,
    hellos: [Vec<u8>; 2],
}

impl Sender {
    async fn bind(target: &DialTarget, source: IpAddr) -> Outcome<Self> {
        let remote = target.addresses.iter().find(|address| address.is_ipv4() == source.is_ipv4());
        let remote = *remote.ok_or("the relay has no address of this family")?;
        let socket = UdpSocket::bind((source, 0)).await?;
        socket.connect(remote).await?;
        let hellos =
            [hello_with_cookie(target, &socket, remote).await?, hello_with_cookie(target, &socket, remote).await?];
        Ok(Self { socket, hellos })
    }
}

/// A hello of a new client random, with the relay's cookie for it.
async fn hello_with_cookie(target: &DialTarget, socket: &UdpSocket, remote: SocketAddr) -> Outcome<Vec<u8>> {
    let mut endpoint = Endpoint::new(EndpointConfig::new(Certificate::generate()?), StdInstant::now())?;
    endpoint.set_ports(&[Port { id: 0, purpose: PortUse::Dial, ipv6: remote.is_ipv6() }], 1);
    endpoint.handle_transmit(Instant::START, Transmit::Dial(target.clone()));
    let first = next_datagram(&mut endpoint)?;
    let mut buffer = [0; 2_048];
    for _ in 0..TRIES {
        socket.send(&first).await?;
        let Ok(length) = timeout(ANSWER_TIMEOUT, socket.recv(&mut buffer)).await else { continue };
        let answer = buffer.get_mut(..length?).unwrap_or_default();
        endpoint.handle_datagram(Instant::START, SocketRoute { port: 0, remote }, answer);
        // Flights that answer an earlier hello arrive too; the endpoint ignores them.
        if let Ok(second) = next_datagram(&mut endpoint) {
            return Ok(second);
        }
    }
    Err("the relay sends no cookie".into())
}

fn next_datagram(endpoint: &mut Endpoint) -> Outcome<Vec<u8>> {
    let batch = endpoint.poll_datagrams(Instant::START).ok_or("the endpoint sends nothing")?;
    Ok(batch.bytes.to_vec())
}

/// Sends hellos from `ports` ports of each source until it is dropped. Prints the counts every second, as for CREATEs.
pub(crate) async fn run(target: DialTarget, sources: Vec<IpAddr>, ports: usize) -> Outcome<()> {
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut sent, mut reported) = (0_usize, StdInstant::now());
    loop {
        let mut senders = Vec::new();
        for source in &sources {
            for _ in 0..ports {
                senders.push(Sender::bind(&target, *source).await?);
            }
        }
        let collected = StdInstant::now();
        while collected.elapsed() < COOKIE_INTERVAL {
            ticks.tick().await;
            for _ in 0..HELLOS_A_MILLISECOND {
                let Some(sender) = senders.get(sent % senders.len().max(1)) else { return Err("no source".into()) };
                let [first, second] = &sender.hellos;
                let hello = if sent / senders.len() % 2 == 0 { first } else { second };
                match sender.socket.try_send(hello) {
                    // An ICMP error of an earlier datagram counts as a loss.
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => {}
                    _ => sent = sent.saturating_add(1),
                }
            }
            if reported.elapsed() >= Duration::from_secs(1) {
                reported = StdInstant::now();
                println!("open {} closed 0 sent {sent} created 0 extended 0 refused 0 ended 0", senders.len());
            }
        }
    }
}
