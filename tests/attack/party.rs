//! A client's channels over one UDP socket of a given source address.

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant as StdInstant},
};

use rand::rngs::StdRng;
use tokio::{net::UdpSocket, time::timeout};
use umbel::{
    base::Instant,
    channel::{ChannelEvent, ChannelParameters, Channels, LocalRole},
    transport::{
        Transport as _,
        native::{Certificate, Endpoint, EndpointConfig, Port, PortUse, SocketRoute},
    },
};

use super::Outcome;

/// Most datagrams that a turn receives.
const MAX_RECEIVED: usize = 64;

/// A client's channels with their transport.
pub(crate) struct Party {
    pub(crate) channels: Channels,
    pub(crate) rng: StdRng,
    endpoint: Endpoint,
    socket: UdpSocket,
    start: StdInstant,
}

/// The code that uses the channels of a [`Party`].
pub(crate) trait User {
    /// Takes an event of the channels.
    fn handle_event(&mut self, now: Instant, event: ChannelEvent, channels: &mut Channels, rng: &mut StdRng);

    /// Queues cells. Called after all events.
    fn send(&mut self, now: Instant, channels: &mut Channels, rng: &mut StdRng);
}

impl Party {
    /// Binds a port of `source`.
    pub(crate) async fn bind(source: IpAddr) -> Outcome<Self> {
        let start = StdInstant::now();
        let socket = UdpSocket::bind((source, 0)).await?;
        let mut endpoint = Endpoint::new(EndpointConfig::new(Certificate::generate()?), start)?;
        endpoint.set_ports(&[Port { id: 0, purpose: PortUse::Dial, ipv6: source.is_ipv6() }], 1);
        let channels = Channels::new(LocalRole::Client, ChannelParameters::default());
        Ok(Self { channels, rng: rand::make_rng(), endpoint, socket, start })
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::START.after(self.start.elapsed())
    }

    /// Exchanges events and output until there are no more, then waits at most `wait` for input.
    pub(crate) async fn turn(&mut self, wait: Duration, user: &mut impl User) -> io::Result<()> {
        let now = loop {
            let now = self.now();
            self.settle(now, user);
            while let Some(batch) = self.endpoint.poll_datagrams(now) {
                for datagram in batch.bytes.chunks(batch.segment) {
                    // An ICMP error of an earlier datagram counts as a loss.
                    let _ = self.socket.send_to(datagram, batch.route.remote).await;
                }
            }
            if !self.endpoint.has_link_event() {
                break now;
            }
        };
        let due = [self.endpoint.poll_timeout(), self.channels.poll_timeout()].into_iter().flatten().min();
        let wait = due.map_or(wait, |due| due.since(now).min(wait));
        let _ = timeout(wait, self.socket.readable()).await;
        let now = self.now();
        let mut buffer = [0; 2_048];
        for _ in 0..MAX_RECEIVED {
            let Ok((length, remote)) = self.socket.try_recv_from(&mut buffer) else { break };
            let datagram = buffer.get_mut(..length).unwrap_or_default();
            self.endpoint.handle_datagram(now, SocketRoute { port: 0, remote }, datagram);
        }
        self.endpoint.handle_timeout(now);
        self.channels.handle_timeout(now);
        Ok(())
    }

    fn settle(&mut self, now: Instant, user: &mut impl User) {
        let Self { channels, endpoint, rng, .. } = self;
        loop {
            while let Some(event) = endpoint.poll_link_event() {
                channels.handle_link(now, event, rng);
                while let Some(event) = channels.poll_event() {
                    user.handle_event(now, event, channels, rng);
                }
            }
            user.send(now, channels, rng);
            let mut sent = false;
            while let Some(transmit) = channels.poll_transmit(now) {
                endpoint.handle_transmit(now, transmit);
                sent = true;
                while let Some(event) = channels.poll_event() {
                    user.handle_event(now, event, channels, rng);
                }
            }
            if !sent {
                return;
            }
        }
    }
}
