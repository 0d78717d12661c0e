//! An endpoint over real sockets, with the event loop of a node, for tests, benchmarks and the listener of the
//! browser tests.
#![allow(clippy::disallowed_methods, clippy::expect_used, reason = "uses the system's clock and fails by panicking")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant as StdInstant},
};

use umbel::{
    base::{Instant, LinkEvent, Transmit},
    transport::{
        Transport,
        native::{Endpoint, EndpointConfig, Sockets},
    },
};

/// An endpoint with its sockets.
pub(crate) struct DrivenEndpoint {
    pub(crate) endpoint: Endpoint,
    sockets: Sockets,
    start: StdInstant,
}

impl DrivenEndpoint {
    /// Listens on `listen`, and can dial.
    pub(crate) fn new(config: EndpointConfig, listen: &[SocketAddr]) -> Self {
        let start = StdInstant::now();
        let sockets = Sockets::bind(listen, true).expect("sockets");
        let mut endpoint = Endpoint::new(config, start).expect("endpoint");
        endpoint.set_ports(&sockets.ports(), sockets.max_segments());
        Self { endpoint, sockets, start }
    }

    pub(crate) fn listening(&self) -> Vec<SocketAddr> {
        self.sockets.listening()
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::START.after(self.start.elapsed())
    }

    /// Adds an output, which the next [`Self::turn`] sends.
    pub(crate) fn transmit(&mut self, transmit: Transmit) {
        let now = self.now();
        self.endpoint.handle_transmit(now, transmit);
    }

    /// Passes each event to `react`, which may add outputs. Then sends the outputs, and waits at most `max_wait` for
    /// datagrams or a deadline.
    pub(crate) async fn turn(&mut self, max_wait: Duration, mut react: impl FnMut(LinkEvent, &mut Vec<Transmit>)) {
        let mut outputs = Vec::new();
        let now = loop {
            while let Some(event) = self.endpoint.poll_link_event() {
                react(event, &mut outputs);
            }
            for transmit in outputs.drain(..) {
                self.transmit(transmit);
            }
            let now = self.now();
            while !self.sockets.flush(now, &mut self.endpoint).await {}
            if !self.endpoint.has_link_event() {
                break now;
            }
        };
        let wait = self.endpoint.poll_timeout().map_or(max_wait, |at| at.since(now)).min(max_wait);
        let _ = tokio::time::timeout(wait, self.sockets.readable()).await;
        let now = self.now();
        let endpoint = &mut self.endpoint;
        self.sockets.receive(|route, datagrams, segment| endpoint.handle_datagrams(now, route, datagrams, segment));
        endpoint.handle_timeout(now);
    }
}

/// Sends every message back over the lane on which it arrived.
pub(crate) fn echo(event: LinkEvent, outputs: &mut Vec<Transmit>) {
    if let LinkEvent::Message { link, lane, message } = event {
        // A browser's message may be longer than a node's.
        for piece in message.to_vec().chunks(17 << 10) {
            outputs.push(Transmit::Message { link, lane, message: piece.into() });
        }
    }
}
