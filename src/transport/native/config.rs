//! Settings of an endpoint.

use core::{fmt, time::Duration};

use super::{Certificate, CertificateError, CipherSuite, KeyLimits};
use crate::{base::Rate, transport::sctp::congestion::Algorithm};

/// Settings of an [`Endpoint`](super::Endpoint).
#[derive(Debug)]
pub struct EndpointConfig {
    /// The long-lived certificate, for accepted links. Dials use it too unless `fresh_certificate_per_dial` is set.
    pub certificate: Certificate,
    /// The ICE credentials that diallers must use; `None` accepts no link.
    pub accept: Option<Ice>,
    /// Whether each dial uses a fresh certificate, so that peers can't attribute links to one node by their
    /// certificates.
    pub fresh_certificate_per_dial: bool,
    /// Caps and timeouts.
    pub caps: EndpointCaps,
    /// Largest UDP payload sent, in bytes: 600 to 8,952. Default 1,232, the payload at the minimum MTU of IPv6 (1,280).
    /// SCTP packets have 37 bytes less. The path MTU is not probed, so every path between the nodes must carry this
    /// size.
    pub datagram_size: u16,
    /// Largest receive window of a link, in bytes. That of an accepted link is at most 2 MiB until the core reports its
    /// peer as a listed relay. Default 16 MiB. A peer that never completes its messages can occupy nine eighths of the
    /// window and 129 KiB.
    pub receive_window: usize,
    /// Most bytes of partly received messages on all links, in addition to 64 KiB for each link. A source (IPv4
    /// address, IPv6 /64) gets at most a sixteenth, a network (IPv4 /24, IPv6 /48) a quarter. Default 256 MiB.
    pub receive_memory: usize,
    /// Most bytes of data sent and not acknowledged on all links, in addition to 64 KiB for each link. The shares of a
    /// source and a network are those of `receive_memory`. Default 256 MiB.
    pub send_memory: usize,
    /// Congestion control of links. Default BBR.
    pub congestion: Algorithm,
    /// Cipher suites offered and accepted, in any order; offers have the order of [`CipherSuite::ALL`]. A listener
    /// selects the first supported suite of the dialler. Default all.
    pub cipher_suites: Vec<CipherSuite>,
    /// Numbers of records that the keys of a link may protect. `retire` is at least 1, `end` at least 16 more, `forged`
    /// at least 2.
    pub key_limits: KeyLimits,
}

impl EndpointConfig {
    /// The defaults with this certificate; accepts no link.
    #[must_use]
    pub fn new(certificate: Certificate) -> Self {
        Self {
            certificate,
            accept: None,
            fresh_certificate_per_dial: false,
            caps: EndpointCaps::default(),
            datagram_size: 1_232,
            receive_window: 16 << 20,
            receive_memory: 256 << 20,
            send_memory: 256 << 20,
            congestion: Algorithm::default(),
            cipher_suites: CipherSuite::ALL.to_vec(),
            key_limits: KeyLimits::default(),
        }
    }
}

/// Caps and timeouts of an endpoint. A ClientHello of an owner at its share has no answer; the dialler's DTLS
/// retransmits it.
#[derive(Clone, Debug)]
pub struct EndpointCaps {
    /// Accepted links in total: half-open, open and closing ones. A source (an IPv4 address or an IPv6 /64) has at most a
    /// sixteenth, a network (/24 or /48) a quarter. At the cap, the owner closest to its share loses a link to one
    /// that stays below it. Default 5,120: the 4,096 channels of a relay, its half-open links, and 512 links that close.
    pub links: usize,
    /// Half-open accepted links in total, with the same shares. At the cap, the owner closest to its share loses its
    /// oldest half-open link. Default 512.
    pub half_open: usize,
    /// DTLS handshakes with diallers that begin in a second, and at once. Each takes about 0.5 ms of the core's task.
    /// Hellos above the rate wait; networks take turns. Default 500, and 4 at once.
    pub handshakes: Rate,
    /// Hellos of one source that may wait or begin a handshake in a second, and at once. The rate of a /24 or /48 is four
    /// times as high. Hellos above the rate have no answer. Default 50, and 100 at once.
    pub handshakes_of_source: Rate,
    /// Concurrent dials. Default 512.
    pub dials: usize,
    /// Timeout of a dial, and of the opening of an accepted link. Default 10 s.
    pub opening_timeout: Duration,
    /// Time without an authenticated packet after which the link is closed. The link sends a keep-alive after half of
    /// this time, then after each further sixth. Default 30 s; nodes set 3 s.
    pub silence_timeout: Duration,
}

impl Default for EndpointCaps {
    fn default() -> Self {
        Self {
            links: 5_120,
            half_open: 512,
            handshakes: Rate { per_second: 500, burst: 4 },
            handshakes_of_source: Rate { per_second: 50, burst: 100 },
            dials: 512,
            opening_timeout: Duration::from_secs(10),
            silence_timeout: Duration::from_secs(30),
        }
    }
}

/// ICE user-name fragment and password of a listening endpoint (RFC 8839 §5.4), as in its descriptor.
#[derive(Clone, PartialEq, Eq)]
pub struct Ice {
    ufrag: String,
    password: String,
}

/// Reason for which a pair is not a valid [`Ice`].
#[derive(Debug, thiserror::Error)]
pub enum IceError {
    /// The fragment is not 4 to 256 ICE characters.
    #[error("the ICE user-name fragment is not 4 to 256 letters, digits, + or /")]
    Ufrag,
    /// The password is not 22 to 256 ICE characters.
    #[error("the ICE password is not 22 to 256 letters, digits, + or /")]
    Password,
}

impl Ice {
    /// Checks a pair from a descriptor or a configuration.
    ///
    /// # Errors
    /// [`IceError`] if either has a wrong length or a character that ICE forbids.
    pub fn new(ufrag: &str, password: &str) -> Result<Self, IceError> {
        let ice_characters = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
        if !(4..=256).contains(&ufrag.len()) || !ice_characters(ufrag) {
            return Err(IceError::Ufrag);
        }
        if !(22..=256).contains(&password.len()) || !ice_characters(password) {
            return Err(IceError::Password);
        }
        Ok(Self { ufrag: ufrag.to_owned(), password: password.to_owned() })
    }

    /// The user-name fragment.
    #[must_use]
    pub fn ufrag(&self) -> &str {
        &self.ufrag
    }

    /// The password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for Ice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ice").finish_non_exhaustive()
    }
}

/// Reason for which an endpoint can't be created.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// DTLS rejected its settings.
    #[error("DTLS rejected its settings: {0}")]
    Dtls(String),
    /// A certificate failed.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The datagram size is too small for the handshake, or larger than any path carries.
    #[error("datagrams of {0} bytes can't be sent; choose 600 to 8952")]
    DatagramSize(u16),
    /// The limits of keys are too low, or contradict each other.
    #[error(
        "the key limits retire {}, end {} and forged {} are invalid; choose at least 1 for retire, retire + 16 for end, 2 for \
         forged",
        .0.retire, .0.end, .0.forged
    )]
    KeyLimits(KeyLimits),
    /// The system returned no randomness.
    #[error("the system returned no randomness")]
    Randomness,
}
