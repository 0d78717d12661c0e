//! The stateless front of a listening endpoint: it verifies a cookie before any state is kept (RFC 6347 §4.2.1).
//!
//! A ClientHello without a cookie is answered with a HelloVerifyRequest, without state. The cookie is a MAC over the
//! client's address, the client random and the time, so only a client that receives at that address can return it.
//! Random and cookie are in the first fragment of a hello, so fragmented hellos (Chromium's) need no reassembly here.
//! Governed by `proto/01-transport.md` §3.
//!
//! `dimpl` can't continue after the cookie exchange of another implementation. [`Primer`] therefore brings a `dimpl`
//! server into the state after the HelloVerifyRequest.

use core::cell::Cell;
use std::net::{IpAddr, SocketAddr};

use dimpl::{
    CryptoError, HashAlgorithm,
    crypto::{CryptoProvider, HmacProvider, aws_lc_rs},
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::EndpointError;
use crate::base::Instant;

/// A cookie, of a length that DTLS 1.0 clients also accept.
pub(super) type Cookie = [u8; 32];

/// Period of cookies, in nanoseconds. A cookie is valid until the end of the period after its own.
const PERIOD_NANOS: u64 = 60_000_000_000;

/// The fields that the front reads from the first fragment of a ClientHello.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientHello<'a> {
    /// The record's epoch-0 sequence number, which the answer repeats.
    sequence: [u8; 6],
    /// The client random.
    pub(super) random: [u8; 32],
    /// The cookie, empty in a first hello.
    pub(super) cookie: &'a [u8],
}

impl<'a> ClientHello<'a> {
    /// Parses a datagram that begins with the first fragment of a DTLS 1.2 ClientHello; `None` for other datagrams.
    pub(super) fn parse(datagram: &'a [u8]) -> Option<Self> {
        const HANDSHAKE: u8 = 22;
        const CLIENT_HELLO: u8 = 1;
        let mut read = SliceReader(datagram);
        let [HANDSHAKE, 0xfe, _, 0, 0] = *read.array::<5>()? else { return None };
        let sequence = *read.array::<6>()?;
        let mut read = SliceReader(read.prefixed16()?);
        let [CLIENT_HELLO, _, _, _, _, _, 0, 0, 0] = *read.array::<9>()? else { return None };
        let [0, high, low] = *read.array::<3>()? else { return None };
        let mut read = SliceReader(read.take(usize::from(u16::from_be_bytes([high, low])))?);
        let [0xfe, 0xfd] = *read.array::<2>()? else { return None };
        let random = *read.array::<32>()?;
        let _session = read.prefixed8()?;
        let cookie = read.prefixed8()?;
        Some(Self { sequence, random, cookie })
    }

    /// The HelloVerifyRequest for this hello: 60 bytes, less than the smallest hello.
    pub(super) fn verify_request(&self, cookie: &Cookie) -> [u8; 60] {
        let mut answer = [0; 60];
        let parts: [&[u8]; 5] = [
            &[22, 0xfe, 0xff, 0, 0],
            &self.sequence,
            // Record length 47; HelloVerifyRequest of 35 bytes, message 0, one fragment; DTLS 1.0
            // (recommended by RFC 6347 §4.2.1); cookie.
            &[0, 47, 3, 0, 0, 35, 0, 0, 0, 0, 0, 0, 0, 35],
            &[0xfe, 0xff, 32],
            cookie,
        ];
        for (byte, part) in answer.iter_mut().zip(parts.into_iter().flatten()) {
            *byte = *part;
        }
        answer
    }
}

/// Whether a datagram begins with a fragment of a plaintext ClientHello.
pub(super) fn is_hello_fragment(datagram: &[u8]) -> bool {
    datagram.first() == Some(&22) && datagram.get(3..5) == Some(&[0, 0]) && datagram.get(13) == Some(&1)
}

/// Computes and verifies cookies.
pub(super) struct Front {
    secret: Zeroizing<[u8; 32]>,
}

impl Front {
    /// A front with a random secret from the system.
    pub(super) fn new() -> Result<Self, EndpointError> {
        let mut secret = Zeroizing::new([0; 32]);
        aws_lc_rs::default_provider()
            .secure_random
            .fill(secret.as_mut_slice())
            .map_err(|_| EndpointError::Randomness)?;
        Ok(Self { secret })
    }

    /// The cookie for a hello from `from`.
    pub(super) fn cookie(&self, now: Instant, from: SocketAddr, hello: &ClientHello<'_>) -> Option<Cookie> {
        Some(self.mac(period(now), from, hello)?.finalize().into_bytes().into())
    }

    /// The cookie of a hello if this front computed it for that hello in the current or the previous period.
    pub(super) fn verified(&self, now: Instant, from: SocketAddr, hello: &ClientHello<'_>) -> Option<Cookie> {
        let cookie = Cookie::try_from(hello.cookie).ok()?;
        let period = period(now);
        [Some(period), period.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|period| self.mac(period, from, hello).is_some_and(|mac| mac.verify_slice(&cookie).is_ok()))
            .then_some(cookie)
    }

    fn mac(&self, period: u64, from: SocketAddr, hello: &ClientHello<'_>) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.as_slice()).ok()?;
        mac.update(&period.to_be_bytes());
        match from.ip() {
            IpAddr::V4(address) => mac.update(&address.to_ipv6_mapped().octets()),
            IpAddr::V6(address) => mac.update(&address.octets()),
        }
        mac.update(&from.port().to_be_bytes());
        mac.update(&hello.random);
        Some(mac)
    }
}

fn period(now: Instant) -> u64 {
    now.as_nanos() / PERIOD_NANOS
}

thread_local! {
    /// The cookie that `dimpl` must accept while it runs inside [`Primer::with`].
    static EXPECTED: Cell<Option<Cookie>> = const { Cell::new(None) };
}

/// An HMAC provider that returns a given cookie during [`Self::with`]. `dimpl` uses `hmac_sha256` only for cookies. Its
/// providers are static, so the cookie is passed through this thread's [`EXPECTED`].
#[derive(Debug)]
pub(super) struct Primer;

impl Primer {
    /// Runs `f`. Meanwhile every cookie that `dimpl` computes or expects on this thread is `cookie`.
    pub(super) fn with<T>(cookie: Cookie, f: impl FnOnce() -> T) -> T {
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                EXPECTED.set(None);
            }
        }
        let _reset = Reset;
        EXPECTED.set(Some(cookie));
        f()
    }

    /// Replaces the HMAC of `provider` by this one.
    pub(super) fn install(mut provider: CryptoProvider) -> CryptoProvider {
        provider.hmac_provider = &Self;
        provider
    }
}

impl HmacProvider for Primer {
    fn hmac_sha256(&self, key: &[u8], data: &[u8]) -> Result<[u8; 32], CryptoError> {
        if let Some(cookie) = EXPECTED.get() {
            return Ok(cookie);
        }
        let mut out = [0; 32];
        self.hmac(HashAlgorithm::SHA256, key, data, &mut out)?;
        Ok(out)
    }

    fn hmac(&self, hash: HashAlgorithm, key: &[u8], data: &[u8], out: &mut [u8]) -> Result<usize, CryptoError> {
        aws_lc_rs::default_provider().hmac_provider.hmac(hash, key, data, out)
    }
}

/// The first hello for a primed `dimpl` server: the same client random, and minimal other fields.
pub(super) fn first_hello(random: &[u8; 32]) -> [u8; 67] {
    let mut hello = [0; 67];
    let parts: [&[u8]; 5] = [
        // Record: handshake, DTLS 1.2, epoch 0, sequence 0, 54 bytes.
        &[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 54],
        // ClientHello, 42 bytes, message 0, one fragment.
        &[1, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0, 42],
        &[0xfe, 0xfd],
        random,
        // No session, no cookie, ECDHE-ECDSA-AES128-GCM-SHA256, no compression.
        &[0, 0, 0, 2, 0xc0, 0x2b, 1, 0],
    ];
    for (byte, part) in hello.iter_mut().zip(parts.into_iter().flatten()) {
        *byte = *part;
    }
    hello
}

/// Reads bytes from the start of a slice.
struct SliceReader<'a>(&'a [u8]);

impl<'a> SliceReader<'a> {
    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(array)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// Reads a field after its length of one byte.
    fn prefixed8(&mut self) -> Option<&'a [u8]> {
        let [length] = *self.array()?;
        self.take(usize::from(length))
    }

    /// Reads a field after its length of two bytes.
    fn prefixed16(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_be_bytes(*self.array()?);
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A hello with this random and cookie.
    fn hello_with(random: [u8; 32], cookie: &[u8]) -> Vec<u8> {
        let plain = first_hello(&random);
        let mut hello = plain[..60].to_vec();
        hello.push(u8::try_from(cookie.len()).unwrap());
        hello.extend_from_slice(cookie);
        hello.extend_from_slice(&plain[61..]);
        let body = u8::try_from(hello.len() - 13).unwrap();
        (hello[12], hello[16], hello[24]) = (body, body - 12, body - 12);
        hello
    }

    #[test]
    fn a_cookie_is_valid_only_for_its_address_random_and_time() {
        let front = Front::new().unwrap();
        let from = "192.0.2.1:9".parse().unwrap();
        let now = Instant::START.after(Duration::from_secs(100));
        let first = hello_with([7; 32], &[]);
        let cookie = front.cookie(now, from, &ClientHello::parse(&first).unwrap()).unwrap();
        let second = hello_with([7; 32], &cookie);
        let hello = ClientHello::parse(&second).unwrap();
        assert_eq!(front.verified(now, from, &hello), Some(cookie));
        assert_eq!(front.verified(now.after(Duration::from_secs(60)), from, &hello), Some(cookie));
        assert_eq!(front.verified(now.after(Duration::from_secs(120)), from, &hello), None);
        assert_eq!(front.verified(now, "192.0.2.1:10".parse().unwrap(), &hello), None);
        assert_eq!(front.verified(now, "192.0.2.2:9".parse().unwrap(), &hello), None);
        let other = hello_with([8; 32], &cookie);
        assert_eq!(front.verified(now, from, &ClientHello::parse(&other).unwrap()), None);
    }

    #[test]
    fn the_answer_is_smaller_than_the_smallest_hello() {
        let hello = first_hello(&[0; 32]);
        assert!(ClientHello::parse(&hello).unwrap().verify_request(&[1; 32]).len() < hello.len());
    }

    proptest! {
        #[test]
        fn a_truncated_hello_is_rejected(cut in 0usize..99) {
            let hello = hello_with([7; 32], &[9; 32]);
            prop_assert_eq!(ClientHello::parse(&hello[..cut]), None);
        }

        #[test]
        fn no_datagram_makes_the_parser_panic(datagram in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ClientHello::parse(&datagram);
            let mut hello = first_hello(&[7; 32]).to_vec();
            for (byte, noise) in hello.iter_mut().skip(11).zip(&datagram) {
                *byte ^= noise;
            }
            let _ = ClientHello::parse(&hello);
        }
    }
}
