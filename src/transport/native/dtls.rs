//! DTLS 1.2 (RFC 6347) by `dimpl`: settings, and one machine per link.

use core::time::Duration;
use std::{sync::Arc, time::Instant};

use dimpl::{
    Config, Output,
    crypto::{Dtls12CipherSuite, aws_lc_rs},
};

use super::{
    Certificate, EndpointError, Route,
    certificate::fingerprint,
    datagrams::Datagrams,
    front::{Cookie, Primer, first_hello},
};

/// Bytes that a record adds to an SCTP packet at most: header, explicit nonce (of other suites), tag.
pub(super) const OVERHEAD: u16 = 37;

/// First retransmission of a handshake flight; doubled each time.
const FLIGHT_TIMEOUT: Duration = Duration::from_millis(400);

/// The settings that all machines of an endpoint share: DTLS 1.2 only, ChaCha20-Poly1305 only, certificates on
/// both sides, extended master secret (RFC 7627) always, which `dimpl` insists on.
///
/// No AES-GCM: `dimpl` draws its 8-byte explicit nonces at random, so nonces of one key repeat with probability n²/2⁶⁵
/// (RFC 5288 §3 forbids it). The nonce of ChaCha20-Poly1305 is the sequence number (RFC 7905 §2).
pub(super) fn config(datagram_size: u16, opening: Duration) -> Result<Arc<Config>, EndpointError> {
    Config::builder()
        .with_crypto_provider(Primer::install(aws_lc_rs::default_provider()))
        .mtu(usize::from(datagram_size))
        .flight_start_rto(FLIGHT_TIMEOUT)
        .flight_retries(8)
        .handshake_timeout(opening)
        .dtls12_cipher_suites(&[Dtls12CipherSuite::ECDHE_ECDSA_CHACHA20_POLY1305_SHA256])
        .build()
        .map(Arc::new)
        .map_err(|error| EndpointError::Dtls(error.to_string()))
}

/// The other end broke DTLS, refused, or fell silent in the handshake.
#[derive(Debug, thiserror::Error)]
#[error("DTLS failed: {0}")]
pub(super) struct DtlsError(#[from] dimpl::Error);

/// What a machine tells its link.
pub(super) enum DtlsEvent<'a> {
    /// SHA-256 of the certificate the other end shows. Comes before [`Self::Connected`].
    PeerCertificate([u8; 32]),
    /// The handshake is complete.
    Connected,
    /// An authenticated SCTP packet.
    Packet(&'a [u8]),
    /// The other end said good-bye.
    Closed,
}

/// One DTLS association.
pub(super) struct Dtls {
    machine: dimpl::Dtls,
    timeout: Option<Instant>,
    connected: bool,
    /// The cookie the front accepted, while a fragment of the hello may yet come.
    cookie: Option<Cookie>,
}

impl Dtls {
    /// A client, its first hello ready to be drained.
    pub(super) fn dial(config: &Arc<Config>, certificate: &Certificate, now: Instant) -> Result<Self, DtlsError> {
        let mut machine = dimpl::Dtls::new_12(Arc::clone(config), certificate.to_dtls(), now);
        machine.set_active(true);
        machine.handle_timeout(now)?;
        Ok(Self { machine, timeout: None, connected: false, cookie: None })
    }

    /// A server that goes on where the front has come to: it takes the hello with `cookie` next.
    pub(super) fn accept(
        config: &Arc<Config>,
        certificate: &Certificate,
        now: Instant,
        random: &[u8; 32],
        cookie: Cookie,
    ) -> Result<Self, DtlsError> {
        let mut machine = dimpl::Dtls::new_12(Arc::clone(config), certificate.to_dtls(), now);
        machine.handle_timeout(now)?;
        Primer::with(cookie, || machine.handle_packet(&first_hello(random)))?;
        // The HelloVerifyRequest it answers with has been sent by the front.
        let mut discard = [0; 256];
        while !matches!(machine.poll_output(&mut discard), Output::Timeout(_) | Output::BufferTooSmall { .. }) {}
        Ok(Self { machine, timeout: None, connected: false, cookie: Some(cookie) })
    }

    /// Takes a datagram. Drain afterwards, also after an error.
    pub(super) fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) -> Result<(), DtlsError> {
        self.machine.handle_timeout(now)?;
        match self.cookie {
            Some(cookie) => Primer::with(cookie, || self.machine.handle_packet(datagram))?,
            None => self.machine.handle_packet(datagram)?,
        }
        Ok(())
    }

    /// Resends what is due. Drain afterwards.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsError> {
        Ok(self.machine.handle_timeout(now)?)
    }

    /// Encrypts one SCTP packet. Drain afterwards, before the next.
    pub(super) fn send(&mut self, packet: &[u8]) -> Result<(), DtlsError> {
        self.machine.send_application_data(packet)?;
        Ok(())
    }

    /// Says good-bye. Drain afterwards.
    pub(super) fn close(&mut self) -> Result<(), DtlsError> {
        Ok(self.machine.close()?)
    }

    /// When the handshake wants [`Self::handle_timeout`]; never once it is complete.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timeout.filter(|_| !self.connected)
    }

    /// Whether the handshake is complete.
    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    /// Moves what the machine has to say: datagrams to `out`, the rest to `on`.
    pub(super) fn drain(
        &mut self,
        out: &mut Datagrams,
        route: Route,
        segments: usize,
        mut on: impl FnMut(DtlsEvent<'_>),
    ) {
        let mut size = 0;
        loop {
            match self.machine.poll_output(out.tail(size)) {
                Output::Packet(packet) => {
                    let length = packet.len();
                    out.commit(route, length, segments);
                }
                Output::BufferTooSmall { needed } => size = needed,
                Output::PeerCert(certificate) => on(DtlsEvent::PeerCertificate(fingerprint(certificate))),
                Output::Connected => {
                    self.connected = true;
                    self.cookie = None;
                    on(DtlsEvent::Connected);
                }
                Output::ApplicationData(packet) => on(DtlsEvent::Packet(packet)),
                Output::CloseNotify => on(DtlsEvent::Closed),
                Output::KeyingMaterial(..) => {}
                Output::Timeout(at) => {
                    self.timeout = Some(at);
                    return;
                }
                _ => {}
            }
        }
    }
}
