//! DTLS 1.2 (RFC 6347) of one link: `dimpl` performs the handshake, [`Records`] carries everything after it.
//!
//! The client sends its Finished first, and `dimpl` retransmits the client's last flight until the server's Finished
//! arrives. The server's last flight has no timer; the server retransmits it when the client's Finished arrives again
//! (RFC 6347 §4.2.4). `dimpl` would seal the flight again, with a sequence number that [`Records`] may have used. So
//! the state of `dimpl` is dropped once the handshake is complete. The server keeps the bytes of its last flight until
//! the first application record proves their receipt.

#[cfg(any(test, fuzzing))]
pub(super) mod check;

use core::{
    ops::{ControlFlow, Range},
    time::Duration,
};
use std::{sync::Arc, time::Instant};

use dimpl::{Config, Output, crypto::aws_lc_rs};

use super::{
    Certificate, EndpointError, SocketRoute,
    certificate::fingerprint,
    datagrams::Datagrams,
    front::{Cookie, Primer, first_hello},
    records::{self, CipherSuite, KeyLimits, Opened, RecordError, Records, tap::Tap},
};
use crate::base::ErrorClass;

/// Most bytes that a record adds to an SCTP packet: header, explicit nonce (of AES-GCM), tag.
pub(super) const OVERHEAD: usize = records::OVERHEAD;

/// Timeout of the first retransmission of a handshake flight; doubled each time.
const FLIGHT_TIMEOUT: Duration = Duration::from_millis(400);
/// Shortest interval between retransmissions of the server's last flight. Stock clients retransmit after 50 ms or more.
const REPEAT_INTERVAL: Duration = Duration::from_millis(20);
/// Most bytes kept of the server's last flight. ChangeCipherSpec and Finished have 75.
const MAX_LAST_FLIGHT: usize = 256;
/// Longest datagram that is read during a handshake, in bytes. A whole flight of our nodes has about 700.
const MAX_HANDSHAKE_DATAGRAM: usize = 1_500;
/// Most datagrams that `dimpl` queues during a handshake. They are fragments, reordered, or ChangeCipherSpecs of repeated
/// flights. One more ends the attempt. `dimpl` stores a datagram of eight records in 42 kB.
const MAX_QUEUED: usize = 8;
/// Longest certificate of a peer, in bytes. Those of our nodes and of browsers have less than 500.
const MAX_CERTIFICATE: usize = 4 << 10;
/// Bytes of the buffer for an output of `dimpl`. `dimpl` panics if the peer's certificate is longer. A message of the
/// handshake is shorter than the queued datagrams that contain it.
const OUTPUT_BUFFER: usize = MAX_QUEUED * MAX_HANDSHAKE_DATAGRAM;

/// Settings shared by all DTLS associations of an endpoint.
pub(super) struct DtlsConfig {
    dimpl_config: Arc<Config>,
    limits: KeyLimits,
}

impl DtlsConfig {
    /// Settings for DTLS 1.2 with these suites, and with certificates on both sides. `dimpl` requires the extended
    /// master secret (RFC 7627).
    pub(super) fn new(
        datagram_size: u16,
        opening_timeout: Duration,
        suites: &[CipherSuite],
        limits: KeyLimits,
    ) -> Result<Self, EndpointError> {
        if suites.is_empty() {
            return Err(EndpointError::Dtls("no cipher suite".to_owned()));
        }
        let suites: Vec<_> = suites.iter().map(|suite| suite.to_dtls()).collect();
        let dimpl_config = Config::builder()
            .with_crypto_provider(Tap::install(Primer::install(aws_lc_rs::default_provider())))
            .mtu(usize::from(datagram_size).min(MAX_HANDSHAKE_DATAGRAM))
            .max_queue_rx(MAX_QUEUED)
            .flight_start_rto(FLIGHT_TIMEOUT)
            .flight_retries(8)
            .handshake_timeout(opening_timeout)
            .dtls12_cipher_suites(&suites)
            .build()
            .map_err(|error| EndpointError::Dtls(error.to_string()))?;
        Ok(Self { dimpl_config: Arc::new(dimpl_config), limits })
    }
}

/// Reason for the failure of an association.
#[derive(Debug, thiserror::Error)]
pub(super) enum DtlsError {
    /// The peer violated, refused or abandoned the handshake.
    #[error("the DTLS handshake failed: {0}")]
    Handshake(#[from] dimpl::Error),
    /// The record layer failed.
    #[error("the DTLS record layer failed: {0}")]
    Record(#[from] RecordError),
    /// The peer sent a fatal alert.
    #[error("the peer sent the fatal DTLS alert {0}")]
    Alert(u8),
    /// No record can be sealed before the handshake is complete.
    #[error("the DTLS handshake is not complete")]
    NotConnected,
}

impl DtlsError {
    /// The class of the error.
    pub(super) const fn class(&self) -> ErrorClass {
        match self {
            Self::Record(RecordError::KeyLimit) => ErrorClass::Limit,
            Self::Handshake(_) | Self::Alert(_) => ErrorClass::Peer,
            Self::Record(_) | Self::NotConnected => ErrorClass::Bug,
        }
    }
}

/// An event of an association for its link.
pub(super) enum DtlsEvent<'a> {
    /// SHA-256 of the peer's certificate; `None` if the certificate is longer than [`MAX_CERTIFICATE`]. Precedes
    /// [`Self::Connected`].
    PeerCertificate(Option<[u8; 32]>),
    /// The handshake is complete.
    Connected,
    /// An authenticated SCTP packet.
    Packet(&'a [u8]),
    /// The peer sent close_notify.
    Closed,
}

/// One DTLS association.
pub(super) struct Dtls {
    state: DtlsState,
    limits: KeyLimits,
}

enum DtlsState {
    Handshake(Box<Handshake>),
    Connected(Box<ConnectedDtls>),
    /// The handshake completed, but the tap has no keys: a bug.
    Failed,
}

struct Handshake {
    machine: dimpl::Dtls,
    tap: Tap,
    timeout: Option<Instant>,
    connected: bool,
    /// Of a server: the cookie that the front accepted, for later fragments of the hello.
    cookie: Option<Cookie>,
    /// Of a server: its ChangeCipherSpec and Finished, as sent.
    last_flight: Vec<u8>,
    is_server: bool,
}

struct ConnectedDtls {
    records: Records,
    /// Positions of the SCTP packets in the last datagram.
    packets: Vec<Range<usize>>,
    last_flight: Option<LastFlight>,
    /// A close_notify arrived and has not been reported to the link.
    closed_by_peer: bool,
    /// Whether to send a close_notify.
    close: bool,
}

/// A server's ChangeCipherSpec and Finished, as first sent.
struct LastFlight {
    bytes: Vec<u8>,
    /// Time of the last retransmission.
    retransmitted: Option<Instant>,
    /// A retransmission is due.
    due: bool,
}

impl Dtls {
    /// Starts a client. Its first hello is the output of [`Self::drain`].
    pub(super) fn dial(config: &DtlsConfig, certificate: &Certificate, now: Instant) -> Result<Self, DtlsError> {
        let mut machine = dimpl::Dtls::new_12(Arc::clone(&config.dimpl_config), certificate.to_dtls(), now);
        machine.set_active(true);
        machine.handle_timeout(now)?;
        Ok(Self::new(config, machine, None))
    }

    /// Starts a server after the front's cookie exchange. Its next input must be the hello with `cookie`.
    pub(super) fn accept(
        config: &DtlsConfig,
        certificate: &Certificate,
        now: Instant,
        random: &[u8; 32],
        cookie: Cookie,
    ) -> Result<Self, DtlsError> {
        let mut machine = dimpl::Dtls::new_12(Arc::clone(&config.dimpl_config), certificate.to_dtls(), now);
        machine.handle_timeout(now)?;
        Primer::with(cookie, || machine.handle_packet(&first_hello(random)))?;
        // The front has already sent the HelloVerifyRequest that `dimpl` returns here.
        let mut discard = [0; 256];
        while !matches!(machine.poll_output(&mut discard), Output::Timeout(_) | Output::BufferTooSmall { .. }) {}
        Ok(Self::new(config, machine, Some(cookie)))
    }

    fn new(config: &DtlsConfig, machine: dimpl::Dtls, cookie: Option<Cookie>) -> Self {
        let handshake = Handshake {
            machine,
            tap: Tap::default(),
            timeout: None,
            connected: false,
            is_server: cookie.is_some(),
            cookie,
            last_flight: Vec::new(),
        };
        Self { state: DtlsState::Handshake(Box::new(handshake)), limits: config.limits }
    }

    /// Handles a datagram; opens its records in place. Call [`Self::drain`] afterwards with the same datagram, also
    /// after an error.
    pub(super) fn handle_datagram(&mut self, now: Instant, datagram: &mut [u8]) -> Result<(), DtlsError> {
        match &mut self.state {
            DtlsState::Handshake(handshake) => handshake.handle_datagram(now, datagram),
            DtlsState::Connected(connected) => connected.handle_datagram(now, datagram),
            DtlsState::Failed => Err(DtlsError::NotConnected),
        }
    }

    /// Retransmits a handshake flight that is due. Call [`Self::drain`] afterwards.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsError> {
        let DtlsState::Handshake(handshake) = &mut self.state else { return Ok(()) };
        let Handshake { machine, tap, .. } = &mut **handshake;
        Ok(tap.with(|| machine.handle_timeout(now))?)
    }

    /// Bytes that must be free in the buffer before an SCTP packet to be sealed.
    pub(super) fn header_len(&self) -> usize {
        match &self.state {
            DtlsState::Connected(connected) => connected.records.header_len(),
            DtlsState::Handshake(_) | DtlsState::Failed => OVERHEAD,
        }
    }

    /// Seals one SCTP packet in place: `buffer[header_len..][..length]`. The buffer has at least [`OVERHEAD`] bytes
    /// more than the packet. Returns the datagram's length, from the start of the buffer.
    pub(super) fn seal(&mut self, buffer: &mut [u8], length: usize) -> Result<usize, DtlsError> {
        match &mut self.state {
            DtlsState::Connected(connected) => Ok(connected.records.seal(buffer, length)?),
            DtlsState::Handshake(_) | DtlsState::Failed => Err(DtlsError::NotConnected),
        }
    }

    /// Whether the keys have reached [`KeyLimits::retire`]; `true` once.
    pub(super) fn take_retired(&mut self) -> bool {
        match &mut self.state {
            DtlsState::Connected(connected) => connected.records.take_retired(),
            DtlsState::Handshake(_) | DtlsState::Failed => false,
        }
    }

    /// Queues a close_notify if the handshake is complete. Call [`Self::drain`] afterwards.
    pub(super) fn close(&mut self) {
        if let DtlsState::Connected(connected) = &mut self.state {
            connected.close = true;
        }
    }

    /// The deadline for [`Self::handle_timeout`]; `None` once the handshake is complete.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            DtlsState::Handshake(handshake) => handshake.timeout,
            DtlsState::Connected(_) | DtlsState::Failed => None,
        }
    }

    /// Whether the handshake is complete and this end has sent no close_notify.
    pub(super) fn is_connected(&self) -> bool {
        matches!(&self.state, DtlsState::Connected(connected) if !connected.records.is_closed())
    }

    /// Seals an alert of the established association. Returns the length of the record.
    #[cfg(test)]
    pub(super) fn seal_alert(&mut self, buffer: &mut [u8], alert: [u8; 2]) -> usize {
        let DtlsState::Connected(connected) = &mut self.state else { panic!("not connected") };
        connected.records.seal_alert(buffer, alert)
    }

    #[cfg(test)]
    pub(super) fn keeps_last_flight(&self) -> bool {
        matches!(&self.state, DtlsState::Connected(connected) if connected.last_flight.is_some())
    }

    /// Moves the output of the last call: datagrams to `out`, events to `on`. `datagram` is the argument of
    /// [`Self::handle_datagram`], empty after other calls. A batch has at most `max_segments` datagrams. If `on` breaks, the
    /// association ends without further output.
    pub(super) fn drain(
        &mut self,
        datagram: &[u8],
        out: &mut Datagrams,
        route: SocketRoute,
        max_segments: usize,
        mut on: impl FnMut(DtlsEvent<'_>) -> ControlFlow<()>,
    ) {
        let outcome = match &mut self.state {
            DtlsState::Handshake(handshake) => {
                let outcome = handshake.drain(out, route, max_segments, &mut on);
                let connected = outcome.is_continue() && handshake.connected;
                if connected { self.take_over(&mut on) } else { outcome }
            }
            DtlsState::Connected(connected) => connected.drain(datagram, out, route, max_segments, &mut on),
            DtlsState::Failed => ControlFlow::Continue(()),
        };
        if outcome.is_break() {
            self.state = DtlsState::Failed;
        }
    }

    /// Starts the record layer with the keys of `dimpl`, and drops the state of `dimpl`.
    fn take_over(&mut self, on: &mut impl FnMut(DtlsEvent<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        let DtlsState::Handshake(handshake) = core::mem::replace(&mut self.state, DtlsState::Failed) else {
            return ControlFlow::Continue(());
        };
        let Handshake { tap, last_flight, is_server, .. } = *handshake;
        let Some(records) = tap.into_records(self.limits) else { return on(DtlsEvent::Closed) };
        self.state = DtlsState::Connected(Box::new(ConnectedDtls {
            records,
            packets: Vec::new(),
            last_flight: is_server.then_some(LastFlight { bytes: last_flight, retransmitted: None, due: false }),
            closed_by_peer: false,
            close: false,
        }));
        ControlFlow::Continue(())
    }
}

impl Handshake {
    fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) -> Result<(), DtlsError> {
        if datagram.len() > MAX_HANDSHAKE_DATAGRAM {
            return Ok(());
        }
        let Self { machine, tap, cookie, .. } = self;
        tap.with(|| {
            machine.handle_timeout(now)?;
            match *cookie {
                Some(cookie) => Primer::with(cookie, || machine.handle_packet(datagram)),
                None => machine.handle_packet(datagram),
            }
        })?;
        Ok(())
    }

    fn drain(
        &mut self,
        out: &mut Datagrams,
        route: SocketRoute,
        max_segments: usize,
        on: &mut impl FnMut(DtlsEvent<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut size = OUTPUT_BUFFER;
        loop {
            match self.machine.poll_output(out.tail(size)) {
                Output::Packet(packet) => {
                    if self.connected && self.is_server {
                        keep_last_flight(&mut self.last_flight, packet);
                    }
                    let length = packet.len();
                    out.commit(route, length, max_segments);
                }
                Output::BufferTooSmall { needed } => size = size.max(needed),
                Output::PeerCert(certificate) => {
                    let is_short = certificate.len() <= MAX_CERTIFICATE;
                    on(DtlsEvent::PeerCertificate(is_short.then(|| fingerprint(certificate))))?;
                }
                Output::Connected => {
                    self.connected = true;
                    on(DtlsEvent::Connected)?;
                }
                Output::ApplicationData(packet) => on(DtlsEvent::Packet(packet))?,
                Output::CloseNotify => on(DtlsEvent::Closed)?,
                Output::Timeout(at) => {
                    self.timeout = Some(at);
                    return ControlFlow::Continue(());
                }
                _ => {}
            }
        }
    }
}

/// Appends the ChangeCipherSpec and Finished records of `datagram` to `flight`.
fn keep_last_flight(flight: &mut Vec<u8>, mut datagram: &[u8]) {
    while let Some([content, _, _, _, epoch, .., high, low]) = datagram.first_chunk::<13>().copied() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some((record, after)) = datagram.split_at_checked(length.saturating_add(13)) else { return };
        if matches!((content, epoch), (20, 0) | (22, 1)) && flight.len().saturating_add(record.len()) <= MAX_LAST_FLIGHT
        {
            flight.extend_from_slice(record);
        }
        datagram = after;
    }
}

impl ConnectedDtls {
    fn handle_datagram(&mut self, now: Instant, datagram: &mut [u8]) -> Result<(), DtlsError> {
        let Self { records, packets, last_flight, closed_by_peer, .. } = self;
        packets.clear();
        let mut fatal = None;
        records.open(datagram, |opened| match opened {
            Opened::Data(packet) => {
                // Application data proves the receipt of the last flight.
                *last_flight = None;
                packets.push(packet);
            }
            Opened::Finished => {
                if let Some(flight) = last_flight
                    && flight.retransmitted.is_none_or(|at| now.saturating_duration_since(at) >= REPEAT_INTERVAL)
                {
                    (flight.retransmitted, flight.due) = (Some(now), true);
                }
            }
            Opened::CloseNotify => *closed_by_peer = true,
            Opened::Fatal(description) => fatal = fatal.or(Some(description)),
        })?;
        fatal.map_or(Ok(()), |description| Err(DtlsError::Alert(description)))
    }

    fn drain(
        &mut self,
        datagram: &[u8],
        out: &mut Datagrams,
        route: SocketRoute,
        max_segments: usize,
        on: &mut impl FnMut(DtlsEvent<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for packet in self.packets.drain(..) {
            if let Some(packet) = datagram.get(packet) {
                on(DtlsEvent::Packet(packet))?;
            }
        }
        if let Some(flight) = &mut self.last_flight
            && core::mem::take(&mut flight.due)
        {
            out.push(route, &flight.bytes, max_segments);
        }
        let closed_by_peer = core::mem::take(&mut self.closed_by_peer);
        // A close_notify is answered with one (RFC 5246 §7.2.1).
        if (core::mem::take(&mut self.close) || closed_by_peer)
            && let Ok(length) = self.records.close_notify(out.tail(0))
        {
            out.commit(route, length, max_segments);
        }
        if closed_by_peer { on(DtlsEvent::Closed) } else { ControlFlow::Continue(()) }
    }
}
