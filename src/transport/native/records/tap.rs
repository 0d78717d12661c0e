//! Cipher suites for `dimpl` that capture its keys and nonces, so that [`Records`] can continue after the handshake.
//!
//! `dimpl` creates a cipher from a key alone, without a reference to a link. A thread-local therefore holds the
//! [`Capture`] of one link during each call to its `dimpl` instance, and the ciphers write to it. IV and sequence
//! number are derived from nonce and additional data of the Finished messages. Each end seals one and opens one.
//!
//! `dimpl` draws explicit nonces of AES-GCM at random. So that no nonce is used twice, a tapped cipher rejects a nonce
//! that was used before, or that [`Records`] may use later.

use core::cell::Cell;

use dimpl::{
    CryptoError, HashAlgorithm,
    crypto::{
        Aad, Buf, Cipher, CryptoProvider, Dtls12CipherSuite, Nonce, SupportedDtls12CipherSuite, TmpBuf, aws_lc_rs,
    },
};
use zeroize::Zeroizing;

use super::{CipherSuite, DirectionKey, EPOCH, GCM_SEQUENCE_NUMBERS, KeyLimits, Records, window::ReplayWindow};

/// Most records that a handshake seals in epoch 1: Finished, its retransmissions, and an alert.
const MAX_SEALED: usize = 64;

thread_local! {
    /// The capture of the current call to `dimpl`; `None` outside of [`Tap::with`].
    static CURRENT: Cell<Option<Box<Capture>>> = const { Cell::new(None) };
}

/// The capture of one `dimpl` instance between calls.
#[derive(Default)]
pub(in super::super) struct Tap(Option<Box<Capture>>);

/// Keys, nonces and sequence numbers that the ciphers of a `dimpl` instance have used.
#[derive(Default)]
struct Capture {
    write: Option<Direction>,
    read: Option<Direction>,
    /// Explicit nonces of the sealed records.
    nonces: Vec<[u8; 8]>,
    /// The sequence number after that of the last sealed record.
    next_sequence: u64,
    /// The sequence numbers of the opened records.
    window: ReplayWindow,
}

struct Direction {
    suite: CipherSuite,
    key: DirectionKey,
}

impl Tap {
    /// Runs `f`, a call to the `dimpl` instance of this tap.
    pub(in super::super) fn with<T>(&mut self, f: impl FnOnce() -> T) -> T {
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                CURRENT.set(None);
            }
        }
        let _reset = Reset;
        CURRENT.set(Some(self.0.take().unwrap_or_default()));
        let result = f();
        self.0 = CURRENT.take();
        result
    }

    /// Replaces the suites of `provider` by the tapped suites.
    pub(in super::super) fn install(mut provider: CryptoProvider) -> CryptoProvider {
        static SUITES: &[&dyn SupportedDtls12CipherSuite] =
            &[&TappedSuite(CipherSuite::Aes128Gcm), &TappedSuite(CipherSuite::ChaCha20Poly1305)];
        provider.cipher_suites = SUITES;
        provider
    }

    /// The record layer that continues after the handshake. `dimpl` must seal no record from then on. `None` unless
    /// both Finished messages were captured, under one suite.
    pub(in super::super) fn into_records(self, limits: KeyLimits) -> Option<Records> {
        let Capture { write, read, next_sequence, window, .. } = *self.0?;
        let (write, read) = (write?, read?);
        if write.suite != read.suite {
            return None;
        }
        let mut records = Records::new(write.suite, &write.key, &read.key, limits)?;
        (records.next_sequence, records.window) = (next_sequence, window);
        Some(records)
    }
}

/// Passes the current capture to `f`. Fails outside of [`Tap::with`], so that every nonce is captured.
fn with_capture(f: impl FnOnce(&mut Capture) -> Option<()>) -> Result<(), CryptoError> {
    let mut capture = CURRENT.take().ok_or(CryptoError::InvalidNonce)?;
    let outcome = f(&mut capture);
    CURRENT.set(Some(capture));
    outcome.ok_or(CryptoError::InvalidNonce)
}

#[derive(Debug)]
struct TappedSuite(CipherSuite);

impl TappedSuite {
    fn inner(&self) -> Option<&'static dyn SupportedDtls12CipherSuite> {
        aws_lc_rs::default_provider().cipher_suites.iter().copied().find(|suite| suite.suite() == self.suite())
    }
}

impl CipherSuite {
    /// The name in `dimpl`.
    pub(in super::super) const fn to_dtls(self) -> Dtls12CipherSuite {
        match self {
            Self::Aes128Gcm => Dtls12CipherSuite::ECDHE_ECDSA_AES128_GCM_SHA256,
            Self::ChaCha20Poly1305 => Dtls12CipherSuite::ECDHE_ECDSA_CHACHA20_POLY1305_SHA256,
        }
    }
}

impl SupportedDtls12CipherSuite for TappedSuite {
    fn suite(&self) -> Dtls12CipherSuite {
        self.0.to_dtls()
    }

    fn hash_algorithm(&self) -> HashAlgorithm {
        HashAlgorithm::SHA256
    }

    fn key_lengths(&self) -> (usize, usize, usize) {
        (0, self.0.algorithm().key_len(), self.0.fixed_iv_len())
    }

    fn explicit_nonce_len(&self) -> usize {
        self.0.explicit_nonce_len()
    }

    fn tag_len(&self) -> usize {
        super::TAG
    }

    fn create_cipher(&self, key: &[u8]) -> Result<Box<dyn Cipher>, CryptoError> {
        let inner = self.inner().ok_or(CryptoError::UnsupportedCipherSuite(self.suite()))?.create_cipher(key)?;
        Ok(Box::new(TappedCipher { suite: self.0, key: Zeroizing::new(key.to_vec()), inner }))
    }
}

/// The cipher of one direction.
struct TappedCipher {
    suite: CipherSuite,
    key: Zeroizing<Vec<u8>>,
    inner: Box<dyn Cipher>,
}

impl core::fmt::Debug for TappedCipher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("TappedCipher").finish_non_exhaustive()
    }
}

impl TappedCipher {
    /// Key and IV of this direction. The IV is derived from a nonce and its record number.
    fn direction(&self, number: [u8; 8], nonce: &[u8; 12]) -> Option<Direction> {
        let mut iv = Zeroizing::new(*nonce);
        for (byte, number_byte) in iv.iter_mut().skip(4).zip(number) {
            *byte ^= number_byte;
        }
        let key = DirectionKey::new(self.suite, &self.key, iv.get(..self.suite.fixed_iv_len())?)?;
        Some(Direction { suite: self.suite, key })
    }
}

/// Record number and sequence number in the additional data; `None` if the epoch is not 1.
fn numbers(aad: &Aad) -> Option<([u8; 8], u64)> {
    let number = *aad.first_chunk()?;
    let sequence = u64::from_be_bytes(number).checked_sub(EPOCH).filter(|sequence| *sequence < EPOCH)?;
    Some((number, sequence))
}

impl Cipher for TappedCipher {
    fn encrypt(&mut self, plaintext: &mut Buf, aad: Aad, nonce: Nonce) -> Result<(), CryptoError> {
        with_capture(|capture| {
            let (number, sequence) = numbers(&aad)?;
            let explicit = *nonce.last_chunk()?;
            let reserved =
                u64::from_be_bytes(explicit).checked_sub(EPOCH).is_some_and(|later| later < GCM_SEQUENCE_NUMBERS);
            let collides = self.suite == CipherSuite::Aes128Gcm && reserved;
            if sequence < capture.next_sequence
                || collides
                || capture.nonces.contains(&explicit)
                || capture.nonces.len() >= MAX_SEALED
            {
                return None;
            }
            capture.nonces.push(explicit);
            capture.next_sequence = sequence.saturating_add(1);
            capture.write = Some(self.direction(number, &nonce.0)?);
            #[cfg(any(test, fuzzing))]
            super::nonces::note_sealed(&self.key, &nonce.0);
            Some(())
        })?;
        self.inner.encrypt(plaintext, aad, nonce)
    }

    fn decrypt(&mut self, ciphertext: &mut TmpBuf, aad: Aad, nonce: Nonce) -> Result<(), CryptoError> {
        let numbers = numbers(&aad);
        self.inner.decrypt(ciphertext, aad, nonce)?;
        with_capture(|capture| {
            let (number, sequence) = numbers?;
            capture.window.mark(sequence);
            capture.read = Some(self.direction(number, &nonce.0)?);
            Some(())
        })
    }
}
