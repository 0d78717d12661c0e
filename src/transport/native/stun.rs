//! Stateless STUN binding responses (RFC 8489) of an ICE-lite agent (RFC 8445 §2.5).
//!
//! A check with our user name and password is answered with the check's source address. Other datagrams have no answer.
//! The password is public, so a check does not authenticate its sender. An answer is therefore never larger than the
//! request (`proto/01-transport.md` §2).

use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use super::Ice;

/// The magic cookie (RFC 8489 §5).
const MAGIC: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Bytes of the message header.
const HEADER: usize = 20;
const BINDING_REQUEST: [u8; 2] = [0, 1];
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
/// Bytes of a MESSAGE-INTEGRITY attribute with its header.
const INTEGRITY_LENGTH: usize = 24;
/// Bytes of a FINGERPRINT attribute with its header.
const FINGERPRINT_LENGTH: usize = 8;
/// Mask of the CRC-32 in a FINGERPRINT (RFC 8489 §14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Whether a datagram is STUN rather than DTLS (RFC 7983 §7).
pub(super) fn is_stun(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| *first < 4) && datagram.get(4..8) == Some(&MAGIC)
}

/// The answer to a binding request with our user name and password. `None` for other datagrams, and if the answer would
/// be larger than the request.
pub(super) fn answer(ice: &Ice, from: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    let transaction = verified_transaction(ice, request)?;
    let answer = success(ice, from, transaction)?;
    (answer.len() <= request.len()).then_some(answer)
}

/// The transaction identifier of a request with our user name and a valid MESSAGE-INTEGRITY.
fn verified_transaction<'a>(ice: &Ice, request: &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(u16_at(request, 2)?);
    if !is_stun(request)
        || request.get(..2) != Some(&BINDING_REQUEST)
        || !length.is_multiple_of(4)
        || request.len() != HEADER.checked_add(length)?
    {
        return None;
    }
    let mut at = HEADER;
    let mut user = None;
    loop {
        let kind = u16_at(request, at)?;
        let length = usize::from(u16_at(request, at.checked_add(2)?)?);
        let start = at.checked_add(4)?;
        let value = request.get(start..start.checked_add(length)?)?;
        match kind {
            USERNAME => user = Some(value),
            MESSAGE_INTEGRITY => {
                verify(ice, request, at, value)?;
                break;
            }
            _ => {}
        }
        at = start.checked_add(length.checked_next_multiple_of(4)?)?;
    }
    // USERNAME is `local ufrag:remote ufrag` (RFC 8445 §7.2.2).
    let ours = user?.split(|byte| *byte == b':').next()?;
    (ours == ice.ufrag().as_bytes()).then_some(())?;
    request.get(8..HEADER)
}

/// Checks the MESSAGE-INTEGRITY attribute at `at`. It covers all bytes before it, with a length field that includes the
/// attribute.
fn verify(ice: &Ice, request: &[u8], at: usize, tag: &[u8]) -> Option<()> {
    let covered = at.checked_sub(HEADER)?.checked_add(INTEGRITY_LENGTH)?;
    let mut mac = Hmac::<Sha1>::new_from_slice(ice.password().as_bytes()).ok()?;
    mac.update(request.get(..2)?);
    mac.update(&u16::try_from(covered).ok()?.to_be_bytes());
    mac.update(request.get(4..at)?);
    mac.verify_slice(tag).ok()
}

/// A success response: XOR-MAPPED-ADDRESS, MESSAGE-INTEGRITY, FINGERPRINT.
fn success(ice: &Ice, mapped: SocketAddr, transaction: &[u8]) -> Option<Vec<u8>> {
    let mut mask = MAGIC.to_vec();
    mask.extend_from_slice(transaction);
    let (family, address) = match mapped.ip() {
        IpAddr::V4(address) => (1, address.octets().to_vec()),
        IpAddr::V6(address) => (2, address.octets().to_vec()),
    };
    let mut attribute = vec![0, family];
    attribute.extend(mapped.port().to_be_bytes().iter().zip(&mask).map(|(byte, mask)| byte ^ mask));
    attribute.extend(address.iter().zip(&mask).map(|(byte, mask)| byte ^ mask));

    let mut message = vec![1, 1, 0, 0];
    message.extend_from_slice(&mask);
    message.extend_from_slice(&[0, 0x20]);
    message.extend_from_slice(&u16::try_from(attribute.len()).ok()?.to_be_bytes());
    message.extend_from_slice(&attribute);

    set_length(&mut message, INTEGRITY_LENGTH)?;
    let mut mac = Hmac::<Sha1>::new_from_slice(ice.password().as_bytes()).ok()?;
    mac.update(&message);
    message.extend_from_slice(&[0, 8, 0, 20]);
    message.extend_from_slice(&mac.finalize().into_bytes());

    set_length(&mut message, FINGERPRINT_LENGTH)?;
    let fingerprint = crc32fast::hash(&message) ^ FINGERPRINT_XOR;
    message.extend_from_slice(&[0x80, 0x28, 0, 4]);
    message.extend_from_slice(&fingerprint.to_be_bytes());
    Some(message)
}

/// Sets the length field of the header to the bytes after the header plus `added`.
fn set_length(message: &mut [u8], added: usize) -> Option<()> {
    let length = u16::try_from(message.len().checked_sub(HEADER)?.checked_add(added)?).ok()?;
    message.get_mut(2..4)?.copy_from_slice(&length.to_be_bytes());
    Some(())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk::<2>().map(|chunk| u16::from_be_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 5769 §2.1: a sample request, its password and user name.
    const SAMPLE: &str = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff\
                          80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249\
                          c1b571a280280004e57a3bcf";

    fn sample() -> (Ice, Vec<u8>) {
        let request = data_encoding::HEXLOWER.decode(SAMPLE.as_bytes()).unwrap();
        (Ice::new("evtj", "VOkJxbRl1RmTxUk/WvJxBt").unwrap(), request)
    }

    #[test]
    fn the_rfc_sample_request_is_answered_with_its_source_address() {
        let (ice, request) = sample();
        let answer = answer(&ice, "192.0.2.1:32853".parse().unwrap(), &request).unwrap();
        // RFC 5769 §2.2: the same address and transaction give this attribute.
        let mapped = data_encoding::HEXLOWER.decode(b"002000080001a147e112a643").unwrap();
        assert_eq!(&answer[..2], &[1, 1]);
        assert_eq!(&answer[8..20], &request[8..20]);
        assert_eq!(&answer[20..32], &mapped[..]);
    }

    #[test]
    fn a_request_for_another_user_or_password_gets_no_answer() {
        let (_, request) = sample();
        let from = "[2001:db8::1]:1".parse().unwrap();
        assert!(answer(&Ice::new("evtk", "VOkJxbRl1RmTxUk/WvJxBt").unwrap(), from, &request).is_none());
        assert!(answer(&Ice::new("evtj", "VOkJxbRl1RmTxUk/WvJxBu").unwrap(), from, &request).is_none());
    }

    proptest! {
        #[test]
        fn no_altered_request_is_answered(at in 0usize..100, bit in 0u8..8) {
            let (ice, mut request) = sample();
            // MESSAGE-INTEGRITY covers all bytes except the 8 of FINGERPRINT after it.
            request[at] ^= 1 << bit;
            prop_assert!(answer(&ice, "192.0.2.1:1".parse().unwrap(), &request).is_none());
        }

        #[test]
        fn no_datagram_gets_a_larger_answer(datagram in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (ice, _) = sample();
            let mut stun = vec![0, 1, 0, 0];
            stun.extend_from_slice(&MAGIC);
            stun.extend_from_slice(&datagram);
            for request in [&datagram, &stun] {
                let answer = answer(&ice, "192.0.2.1:1".parse().unwrap(), request);
                prop_assert!(answer.is_none_or(|answer| answer.len() <= request.len()));
            }
        }
    }
}
