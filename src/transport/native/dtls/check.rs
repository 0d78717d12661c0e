//! Tools of tests and fuzzing: a client and a server in virtual time, whose datagrams the caller delivers.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and the start of the virtual time is the system's"
)]

use core::{ops::ControlFlow, time::Duration};
use std::{collections::VecDeque, time::Instant};

use super::{
    super::{
        Certificate, CipherSuite, KeyLimits, SocketRoute,
        datagrams::Datagrams,
        front::ClientHello,
        records::{OVERHEAD, nonces::NonceWatch},
    },
    Dtls, DtlsConfig, DtlsError, DtlsEvent, DtlsState,
};

/// Index of the client in [`DtlsPair::ends`].
pub(crate) const CLIENT: usize = 0;
/// Index of the server.
pub(crate) const SERVER: usize = 1;
/// The cookie of the server's HelloVerifyRequest.
const COOKIE: [u8; 32] = [5; 32];
/// The longest time that [`DtlsPair::advance`] skips.
const MAX_STEP: Duration = Duration::from_secs(20);

/// A client and a server. While it exists, a second use of a nonce on this thread is a panic.
pub(crate) struct DtlsPair {
    now: Instant,
    config: DtlsConfig,
    certificate: Certificate,
    pub(crate) ends: [DtlsEnd; 2],
    watch: NonceWatch,
}

/// An end of a [`DtlsPair`] and its output.
#[derive(Default)]
pub(crate) struct DtlsEnd {
    dtls: Option<Dtls>,
    /// Sent datagrams that the caller has not taken.
    pub(crate) sent: VecDeque<Vec<u8>>,
    /// Received SCTP packets.
    pub(crate) packets: Vec<Vec<u8>>,
    pub(crate) connected: bool,
    /// The peer's close_notify arrived.
    pub(crate) closed: bool,
    /// The error by which the association failed. It handles no further datagram.
    pub(crate) failure: Option<String>,
}

impl DtlsPair {
    /// A pair without ends. [`Self::dial`] starts the client. The first delivered hello with a cookie starts the
    /// server.
    pub(crate) fn new(suites: &[CipherSuite]) -> Self {
        let config = DtlsConfig::new(1_232, Duration::from_secs(60), suites, KeyLimits::default());
        Self {
            now: Instant::now(),
            config: config.expect("valid settings"),
            certificate: Certificate::generate().expect("the system's cryptography works"),
            ends: Default::default(),
            watch: NonceWatch::new(),
        }
    }

    pub(crate) fn dial(&mut self) {
        let client = Dtls::dial(&self.config, &self.certificate, self.now);
        self.ends[CLIENT].dtls = Some(client.expect("a client can be started"));
        self.drain(CLIENT, &[]);
    }

    /// Delivers a datagram. An end without an association accepts a hello with the right cookie.
    pub(crate) fn deliver(&mut self, to: usize, mut datagram: Vec<u8>) {
        if self.ends[to].failure.is_some() {
            return;
        }
        if self.ends[to].dtls.is_none() {
            let Some(hello) = ClientHello::parse(&datagram) else { return };
            if hello.cookie.is_empty() {
                return self.ends[to].sent.push_back(hello.verify_request(&COOKIE).to_vec());
            }
            if hello.cookie != COOKIE {
                return;
            }
            let server = Dtls::accept(&self.config, &self.certificate, self.now, &hello.random, COOKIE);
            self.ends[to].dtls = Some(server.expect("a server can be started"));
        }
        let now = self.now;
        self.with_dtls(to, |dtls| dtls.handle_datagram(now, &mut datagram));
        self.drain(to, &datagram);
    }

    /// Runs `f` on the association of `end`, unless it has failed, and keeps its error.
    fn with_dtls(&mut self, end: usize, f: impl FnOnce(&mut Dtls) -> Result<(), DtlsError>) {
        if let DtlsEnd { dtls: Some(dtls), failure: failure @ None, .. } = &mut self.ends[end] {
            *failure = f(dtls).err().map(|error| error.to_string());
        }
    }

    fn drain(&mut self, end: usize, datagram: &[u8]) {
        let DtlsEnd { dtls, sent, packets, connected, closed, .. } = &mut self.ends[end];
        let route = SocketRoute { port: 0, remote: ([192, 0, 2, 1], 1).into() };
        let mut out = Datagrams::default();
        if let Some(dtls) = dtls {
            dtls.drain(datagram, &mut out, route, 1, |event| {
                match event {
                    DtlsEvent::Packet(packet) => packets.push(packet.to_vec()),
                    DtlsEvent::Connected => *connected = true,
                    DtlsEvent::Closed => *closed = true,
                    DtlsEvent::PeerCertificate(_) => {}
                }
                ControlFlow::Continue(())
            });
        }
        while let Some(batch) = out.pop() {
            sent.push_back(batch.bytes.to_vec());
        }
    }

    pub(crate) fn take_sent(&mut self, end: usize) -> Vec<Vec<u8>> {
        self.ends[end].sent.drain(..).collect()
    }

    /// Sends an SCTP packet if the handshake of `end` is complete and it has sent no close_notify; returns whether it did.
    pub(crate) fn send(&mut self, end: usize, packet: &[u8]) -> bool {
        let DtlsEnd { dtls, sent, .. } = &mut self.ends[end];
        let Some(dtls) = dtls else { return false };
        let mut buffer = vec![0; packet.len() + OVERHEAD];
        let header = dtls.header_len();
        buffer[header..][..packet.len()].copy_from_slice(packet);
        let Ok(length) = dtls.seal(&mut buffer, packet.len()) else { return false };
        buffer.truncate(length);
        sent.push_back(buffer);
        true
    }

    /// Sends a record of any content type if the handshake of `end` is complete; returns whether it did.
    pub(crate) fn send_record(&mut self, end: usize, content: u8, plaintext: &[u8]) -> bool {
        let DtlsEnd { dtls, sent, .. } = &mut self.ends[end];
        let Some(Dtls { state: DtlsState::Connected(connected), .. }) = dtls else { return false };
        let mut buffer = vec![0; plaintext.len() + OVERHEAD];
        let header = connected.records.header_len();
        buffer[header..][..plaintext.len()].copy_from_slice(plaintext);
        let Ok(length) = connected.records.seal_as(content, &mut buffer, plaintext.len()) else { return false };
        buffer.truncate(length);
        sent.push_back(buffer);
        true
    }

    /// Sends close_notify if the handshake of `end` is complete.
    pub(crate) fn close(&mut self, end: usize) {
        self.with_dtls(end, |dtls| {
            dtls.close();
            Ok(())
        });
        self.drain(end, &[]);
    }

    /// Advances the time to 10 ms after the next timer (by [`MAX_STEP`] at most), or by 10 ms. Returns the time skipped.
    pub(crate) fn advance(&mut self) -> Duration {
        let before = self.now;
        let due = self.ends.iter().filter_map(|end| end.dtls.as_ref()?.poll_timeout()).min();
        self.now = due.map_or(self.now, |due| due.max(self.now)).min(self.now + MAX_STEP);
        self.now += Duration::from_millis(10);
        for end in [CLIENT, SERVER] {
            let now = self.now;
            self.with_dtls(end, |dtls| dtls.handle_timeout(now));
            self.drain(end, &[]);
        }
        self.now.saturating_duration_since(before)
    }

    pub(crate) fn both_connected(&self) -> bool {
        self.ends.iter().all(|end| end.connected)
    }

    /// Number of records sealed by both ends, by `dimpl` or by our layer.
    pub(crate) fn sealed(&self) -> usize {
        self.watch.sealed()
    }

    #[cfg(test)]
    pub(in super::super) fn keeps_last_flight(&self, end: usize) -> bool {
        self.ends[end].dtls.as_ref().is_some_and(Dtls::keeps_last_flight)
    }
}

/// Whether a datagram contains a protected handshake record.
#[cfg(test)]
pub(in super::super) fn has_finished(mut datagram: &[u8]) -> bool {
    while let Some([content, _, _, _, epoch, .., high, low]) = datagram.first_chunk::<13>() {
        if (*content, *epoch) == (22, 1) {
            return true;
        }
        datagram = &datagram[13 + usize::from(u16::from_be_bytes([*high, *low]))..];
    }
    false
}
