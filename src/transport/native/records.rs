//! DTLS 1.2 records after the handshake (RFC 6347 §4.1), sealed and opened in the caller's buffer with counters as
//! nonces.
//!
//! [`Records`] takes over from `dimpl` once the handshake is complete. Both directions are in epoch 1, and there is no
//! renegotiation, so one key protects a direction for the life of the link. The nonce of AES-GCM is the fixed IV and
//! the 64-bit record number (epoch and sequence number, RFC 5288 §3). The nonce of ChaCha20-Poly1305 is the IV xor the
//! record number (RFC 7905 §2). Record numbers are unique, so the nonces are too. [`tap`] extracts keys, IVs and
//! numbers from `dimpl`.
//!
//! Owns the keys, the next sequence number, the replay window and the counts that [`KeyLimits`] limits. Driven by
//! `Dtls`. Governed by `proto/01-transport.md` §4. The threats are forged and replayed datagrams, and malformed records
//! of a peer.

#[cfg(any(test, fuzzing))]
pub(super) mod nonces;
pub(super) mod tap;
#[cfg(test)]
mod tests;
mod window;

use core::ops::Range;

use aws_lc_rs::aead::{AES_128_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::base::Counter as _;
use window::ReplayWindow;

/// Bytes of a record's header (RFC 6347 §4.1).
const HEADER: usize = 13;
/// Bytes of the explicit nonce of AES-GCM (RFC 5288 §3).
const EXPLICIT_NONCE: usize = 8;
/// Bytes of the authentication tag of both suites.
const TAG: usize = 16;
/// Most bytes that a record adds to its plaintext: those of AES-GCM.
pub const OVERHEAD: usize = HEADER + EXPLICIT_NONCE + TAG;

/// Most bytes of plaintext in a record (RFC 5246 §6.2.1).
const MAX_PLAINTEXT: usize = 1 << 14;
/// Most records read from one datagram. Further records are dropped as if lost. Stock peers send one record in each
/// datagram.
const MAX_RECORDS: usize = 16;

/// Content types of records (RFC 5246 §6.2.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
/// The handshake message type of Finished (RFC 5246 §7.4).
const FINISHED: u8 = 20;
/// DTLS 1.2 on the wire.
const VERSION: [u8; 2] = [0xfe, 0xfd];
/// Epoch 1 in a record number; the sequence number is in the lower 48 bits.
const EPOCH: u64 = 1 << 48;

/// Number of AES-GCM sequence numbers that this layer may use. `tap` rejects these numbers as explicit nonces of
/// `dimpl`.
const GCM_SEQUENCE_NUMBERS: u64 = 1 << 32;
/// Number of sequence numbers in an epoch (RFC 6347 §4.1).
const SEQUENCE_NUMBERS: u64 = 1 << 48;
/// Sequence numbers reserved for alerts once the others are used.
const RESERVED_NUMBERS: u64 = 16;
/// Plaintext bytes (87 AES blocks) that count as one record against [`KeyLimits`]. A longer record counts as several.
const COUNT_UNIT: usize = 1_392;

/// A cipher suite of links, with ECDHE as key exchange and ECDSA as signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherSuite {
    /// `TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256` (RFC 5289).
    Aes128Gcm,
    /// `TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256` (RFC 7905).
    ChaCha20Poly1305,
}

impl CipherSuite {
    /// All suites, in order of preference.
    pub const ALL: [Self; 2] = [Self::Aes128Gcm, Self::ChaCha20Poly1305];

    const fn explicit_nonce_len(self) -> usize {
        match self {
            Self::Aes128Gcm => EXPLICIT_NONCE,
            Self::ChaCha20Poly1305 => 0,
        }
    }

    const fn fixed_iv_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 4,
            Self::ChaCha20Poly1305 => 12,
        }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }
}

/// Limits of the records that a key of a link may protect. `proto/01-transport.md` §4 derives the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLimits {
    /// AES-128-GCM records sealed, or opened, after which the link gets no new circuits. Default 2²⁸.
    pub retire: u64,
    /// AES-128-GCM records sealed, or opened, that end the link; the last 16 are reserved for alerts. Default 2³⁰, at
    /// most 2³².
    pub end: u64,
    /// Records of either suite that failed authentication, after which the link ends. Default 2³⁶.
    pub forged: u64,
}

impl KeyLimits {
    /// Whether a link can seal a record before it retires, can retire before it ends, and survives one forged record.
    pub(super) fn is_sound(&self) -> bool {
        let usable = self.end.min(GCM_SEQUENCE_NUMBERS).saturating_sub(RESERVED_NUMBERS);
        (1..=usable).contains(&self.retire) && self.forged > 1
    }
}

impl Default for KeyLimits {
    fn default() -> Self {
        Self { retire: 1 << 28, end: 1 << 30, forged: 1 << 36 }
    }
}

/// Reason for which a record can't be sealed, or no further record can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A limit of [`KeyLimits`] is reached, or the sequence numbers are used up.
    #[error("the link's keys have reached their limit of records")]
    KeyLimit,
    /// This end has sent close_notify.
    #[error("this end has sent close_notify, so no record may follow")]
    Closed,
    /// The buffer ends before the record does, or the plaintext exceeds 2¹⁴ bytes.
    #[error("a record of {0} bytes of plaintext exceeds its buffer or 16384 bytes")]
    Length(usize),
    /// The cryptographic library failed.
    #[error("the cryptographic library can't seal the record")]
    Aead,
}

/// Content of an opened record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Application data: the range of its plaintext in the datagram, never empty.
    Data(Range<usize>),
    /// The peer's Finished under a new sequence number: the peer has not received our last flight.
    Finished,
    /// The close_notify alert.
    CloseNotify,
    /// A fatal alert with this description (RFC 5246 §7.2).
    Fatal(u8),
}

/// Key and IV of one direction.
pub struct DirectionKey {
    key: Zeroizing<Vec<u8>>,
    /// The fixed IV. For AES-GCM, zeros follow its 4 bytes. So with both suites the nonce is IV xor record number.
    iv: Zeroizing<[u8; 12]>,
}

impl DirectionKey {
    /// Copies key and fixed IV, as in the key block (RFC 5246 §6.3). `None` if a length is not that of `suite`.
    #[must_use]
    pub fn new(suite: CipherSuite, key: &[u8], iv: &[u8]) -> Option<Self> {
        let mut padded = Zeroizing::new([0; 12]);
        padded.get_mut(..suite.fixed_iv_len())?.copy_from_slice(iv.get(..suite.fixed_iv_len())?);
        (key.len() == suite.algorithm().key_len() && iv.len() == suite.fixed_iv_len())
            .then(|| Self { key: Zeroizing::new(key.to_vec()), iv: padded })
    }

    fn to_cipher(&self, suite: CipherSuite) -> Option<DirectionCipher> {
        let key = LessSafeKey::new(UnboundKey::new(suite.algorithm(), &self.key).ok()?);
        Some(DirectionCipher { key, iv: self.iv.clone() })
    }
}

/// The cipher of one direction.
struct DirectionCipher {
    key: LessSafeKey,
    iv: Zeroizing<[u8; 12]>,
}

impl DirectionCipher {
    /// The nonce for a record number, or for the explicit nonce of AES-GCM.
    fn nonce(&self, number: [u8; 8]) -> Nonce {
        let mut nonce = *self.iv;
        for (byte, number_byte) in nonce.iter_mut().skip(4).zip(number) {
            *byte ^= number_byte;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The record layer of one link, without I/O.
pub struct Records {
    suite: CipherSuite,
    limits: KeyLimits,
    write: DirectionCipher,
    read: DirectionCipher,
    /// Sequence number of the next record to seal.
    next_sequence: u64,
    window: ReplayWindow,
    /// Records sealed, as counted against the limits.
    sealed: u64,
    /// Records opened, as counted against the limits.
    opened: u64,
    /// Records that failed authentication.
    forged: u64,
    /// [`Self::take_retired`] has returned `true`.
    retired: bool,
    /// This end has sent close_notify.
    closed: bool,
    /// The peer's close_notify has arrived.
    closed_by_peer: bool,
    #[cfg(any(test, fuzzing))]
    write_key: Zeroizing<Vec<u8>>,
}

impl Records {
    /// The record layer of an association that has sealed and opened no record in epoch 1. `None` if the
    /// cryptographic library rejects the keys.
    #[must_use]
    pub fn new(suite: CipherSuite, write: &DirectionKey, read: &DirectionKey, limits: KeyLimits) -> Option<Self> {
        Some(Self {
            suite,
            limits: KeyLimits { end: limits.end.min(GCM_SEQUENCE_NUMBERS), ..limits },
            write: write.to_cipher(suite)?,
            read: read.to_cipher(suite)?,
            next_sequence: 0,
            window: ReplayWindow::default(),
            sealed: 0,
            opened: 0,
            forged: 0,
            retired: false,
            closed: false,
            closed_by_peer: false,
            #[cfg(any(test, fuzzing))]
            write_key: write.key.clone(),
        })
    }

    /// Bytes that must be free in the buffer before the plaintext.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        HEADER.saturating_add(self.suite.explicit_nonce_len())
    }

    /// Seals a record of application data in place. The plaintext is `buffer[header_len..][..length]`, followed by at
    /// least 16 bytes. Returns the record's length, from the start of the buffer.
    ///
    /// # Errors
    /// [`RecordError`]. After [`RecordError::KeyLimit`] or [`RecordError::Closed`], all later calls fail.
    pub fn seal(&mut self, buffer: &mut [u8], length: usize) -> Result<usize, RecordError> {
        if self.closed {
            return Err(RecordError::Closed);
        }
        if self.is_exhausted() {
            return Err(RecordError::KeyLimit);
        }
        self.seal_as(DATA, buffer, length)
    }

    /// Writes a close_notify alert to the start of `buffer` and returns its length. No record can be sealed after it.
    ///
    /// # Errors
    /// [`RecordError`]; [`RecordError::Closed`] if a close_notify has been sent.
    pub fn close_notify(&mut self, buffer: &mut [u8]) -> Result<usize, RecordError> {
        const WARNING_CLOSE_NOTIFY: [u8; 2] = [1, 0];
        if self.closed {
            return Err(RecordError::Closed);
        }
        let plaintext = buffer.get_mut(self.header_len()..).and_then(<[u8]>::first_chunk_mut);
        *plaintext.ok_or(RecordError::Length(2))? = WARNING_CLOSE_NOTIFY;
        let length = self.seal_as(ALERT, buffer, WARNING_CLOSE_NOTIFY.len())?;
        self.closed = true;
        Ok(length)
    }

    /// Seals an alert. Returns the length of the record.
    #[cfg(test)]
    pub(super) fn seal_alert(&mut self, buffer: &mut [u8], alert: [u8; 2]) -> usize {
        let header = self.header_len();
        buffer[header..][..2].copy_from_slice(&alert);
        self.seal_as(ALERT, buffer, 2).unwrap()
    }

    /// [`Self::seal`] for any content type, also after a close_notify.
    pub(super) fn seal_as(&mut self, content: u8, buffer: &mut [u8], length: usize) -> Result<usize, RecordError> {
        let numbers = if self.suite == CipherSuite::Aes128Gcm { GCM_SEQUENCE_NUMBERS } else { SEQUENCE_NUMBERS };
        if self.next_sequence >= numbers {
            return Err(RecordError::KeyLimit);
        }
        let number = (EPOCH | self.next_sequence).to_be_bytes();
        let explicit_len = self.suite.explicit_nonce_len();
        let too_long = RecordError::Length(length);
        let plaintext_len = u16::try_from(length).ok().filter(|_| length <= MAX_PLAINTEXT).ok_or(too_long)?;
        let (header, rest) = buffer.split_first_chunk_mut::<HEADER>().ok_or(too_long)?;
        let (explicit_nonce, rest) = rest.split_at_mut_checked(explicit_len).ok_or(too_long)?;
        let (plaintext, rest) = rest.split_at_mut_checked(length).ok_or(too_long)?;
        let tag_field = rest.first_chunk_mut::<TAG>().ok_or(too_long)?;
        // The sequence number is incremented before the seal, so that a failure causes no nonce reuse.
        self.next_sequence.increment();
        self.sealed = self.sealed.saturating_add(record_count(length));
        #[cfg(any(test, fuzzing))]
        nonces::note_sealed(&self.write_key, self.write.nonce(number).as_ref());
        let aad = Aad::from(additional_data(number, content, plaintext_len));
        let tag = self.write.key.seal_in_place_separate_tag(self.write.nonce(number), aad, plaintext);
        tag_field.copy_from_slice(tag.map_err(|_| RecordError::Aead)?.as_ref());
        explicit_nonce.copy_from_slice(number.get(..explicit_len).unwrap_or_default());
        let body = explicit_len.saturating_add(length).saturating_add(TAG);
        let [high, low] = u16::try_from(body).map_err(|_| too_long)?.to_be_bytes();
        let [a, b, c, d, e, f, g, h] = number;
        let [major, minor] = VERSION;
        *header = [content, major, minor, a, b, c, d, e, f, g, h, high, low];
        Ok(HEADER.saturating_add(body))
    }

    /// Opens the records of a datagram in place and passes their contents to `on_opened`. Malformed, forged and
    /// replayed records, records of another epoch, and records after a close_notify are dropped (RFC 6347 §4.1.2.7).
    ///
    /// # Errors
    /// [`RecordError::KeyLimit`] once the keys have reached a limit. The rest of the datagram is then ignored.
    pub fn open(&mut self, datagram: &mut [u8], mut on_opened: impl FnMut(Opened)) -> Result<(), RecordError> {
        let mut at: usize = 0;
        for _ in 0..MAX_RECORDS {
            let Some((header, rest)) = datagram.get_mut(at..).and_then(<[u8]>::split_first_chunk_mut::<HEADER>) else {
                break;
            };
            let [content, major, minor, number @ .., high, low] = *header;
            let length = usize::from(u16::from_be_bytes([high, low]));
            let Some(body) = rest.get_mut(..length) else { break };
            let start = at.saturating_add(self.header_len());
            at = at.saturating_add(HEADER).saturating_add(length);
            if [major, minor] != VERSION || self.closed_by_peer {
                continue;
            }
            if let Some(plaintext) = self.open_record(content, number, body)? {
                let opened = match (content, plaintext) {
                    (DATA, [_, ..]) => Opened::Data(start..start.saturating_add(plaintext.len())),
                    (ALERT, [_, 0]) => Opened::CloseNotify,
                    (ALERT, [2, description]) => Opened::Fatal(*description),
                    (HANDSHAKE, [FINISHED, ..]) => Opened::Finished,
                    // Empty data, warnings and renegotiation requests are ignored.
                    _ => continue,
                };
                self.closed_by_peer |= opened == Opened::CloseNotify;
                on_opened(opened);
            }
        }
        Ok(())
    }

    /// Opens one record; `None` if it must be dropped.
    fn open_record<'b>(
        &mut self,
        content: u8,
        number: [u8; 8],
        body: &'b mut [u8],
    ) -> Result<Option<&'b [u8]>, RecordError> {
        let explicit_len = self.suite.explicit_nonce_len();
        let record_number = u64::from_be_bytes(number);
        let Some(sequence) = record_number.checked_sub(EPOCH).filter(|sequence| *sequence < EPOCH) else {
            return Ok(None);
        };
        let plaintext_len =
            body.len().checked_sub(explicit_len.saturating_add(TAG)).filter(|length| *length <= MAX_PLAINTEXT);
        let Some(plaintext_len) = plaintext_len.and_then(|length| u16::try_from(length).ok()) else { return Ok(None) };
        if !matches!(content, ALERT | HANDSHAKE | DATA) || !self.window.is_new(sequence) {
            return Ok(None);
        }
        let Some((explicit_nonce, sealed)) = body.split_at_mut_checked(explicit_len) else { return Ok(None) };
        let nonce = self.read.nonce(explicit_nonce.first_chunk().copied().unwrap_or(number));
        let aad = Aad::from(additional_data(number, content, plaintext_len));
        let Ok(plaintext) = self.read.key.open_in_place(nonce, aad, sealed) else {
            self.forged.increment();
            return if self.forged < self.limits.forged { Ok(None) } else { Err(RecordError::KeyLimit) };
        };
        self.window.mark(sequence);
        self.opened = self.opened.saturating_add(record_count(plaintext.len()));
        if self.is_exhausted() {
            return Err(RecordError::KeyLimit);
        }
        Ok(Some(plaintext))
    }

    /// Whether this end has sent close_notify.
    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the keys have reached [`KeyLimits::retire`]; `true` once.
    pub const fn take_retired(&mut self) -> bool {
        let is_limited = matches!(self.suite, CipherSuite::Aes128Gcm);
        let reached = is_limited && (self.sealed >= self.limits.retire || self.opened >= self.limits.retire);
        reached && !core::mem::replace(&mut self.retired, true)
    }

    /// Whether the keys have reached their limit, except for the records reserved for alerts.
    fn is_exhausted(&self) -> bool {
        match self.suite {
            CipherSuite::Aes128Gcm => self.sealed.max(self.opened) >= self.limits.end.saturating_sub(RESERVED_NUMBERS),
            CipherSuite::ChaCha20Poly1305 => self.next_sequence >= SEQUENCE_NUMBERS.saturating_sub(RESERVED_NUMBERS),
        }
    }
}

/// The additional authenticated data (RFC 6347 §4.1.2.1, RFC 5246 §6.2.3.3).
const fn additional_data(number: [u8; 8], content: u8, plaintext_len: u16) -> [u8; 13] {
    let [a, b, c, d, e, f, g, h] = number;
    let ([major, minor], [high, low]) = (VERSION, plaintext_len.to_be_bytes());
    [a, b, c, d, e, f, g, h, content, major, minor, high, low]
}

/// The number of records that a plaintext of `length` bytes counts as.
fn record_count(length: usize) -> u64 {
    u64::try_from(length.div_ceil(COUNT_UNIT).max(1)).unwrap_or(u64::MAX)
}
