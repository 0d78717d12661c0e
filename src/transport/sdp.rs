//! SDP for dials from a WebRTC stack (`proto/01-transport.md` §6): parses the local offer and writes the relay's
//! answer.
//!
//! Descriptors are validated with the consensus. Text that could add a line to the answer is rejected here too, because
//! an added line could set any attribute.

use core::{fmt::Write as _, net::SocketAddr};

use data_encoding::HEXUPPER;

use crate::base::DialTarget;

/// The fields of the local offer that a dialler needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SdpOffer {
    /// Identifier of the media section.
    pub(super) mid: String,
    /// SHA-256 of the certificate of this end (DER).
    pub(super) fingerprint: [u8; 32],
}

impl SdpOffer {
    /// Parses an offer with one media section; `None` if a field is missing.
    pub(super) fn parse(sdp: &str) -> Option<Self> {
        let value = |name: &str| sdp.lines().find_map(|line| line.trim_end().strip_prefix(name));
        let fingerprint = value("a=fingerprint:sha-256 ")?.replace(':', "");
        let fingerprint = HEXUPPER.decode(fingerprint.to_ascii_uppercase().as_bytes()).ok()?;
        let mid = value("a=mid:").filter(|mid| is_token(mid))?.to_owned();
        Some(Self { mid, fingerprint: fingerprint.try_into().ok()? })
    }
}

/// The answer of `target`'s relay at `address` to an offer whose media section is `mid`. `None` if a field of the
/// target can't be written into SDP.
pub(super) fn answer(target: &DialTarget, address: SocketAddr, mid: &str) -> Option<String> {
    let is_ice = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/');
    let usable = (4..=256).contains(&target.ice_ufrag.len())
        && (22..=256).contains(&target.ice_password.len())
        && is_ice(&target.ice_ufrag)
        && is_ice(&target.ice_password)
        && is_token(mid);
    if !usable {
        return None;
    }
    let mut fingerprint = String::with_capacity(95);
    for byte in target.fingerprint {
        let colon = if fingerprint.is_empty() { "" } else { ":" };
        write!(fingerprint, "{colon}{byte:02X}").ok()?;
    }
    let DialTarget { ice_ufrag, ice_password, .. } = target;
    let (ip, port) = (address.ip(), address.port());
    Some(format!(
        "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=ice-lite\r\na=group:BUNDLE {mid}\r\n\
         m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\n\
         a=ice-ufrag:{ice_ufrag}\r\na=ice-pwd:{ice_password}\r\na=fingerprint:sha-256 {fingerprint}\r\n\
         a=setup:passive\r\na=mid:{mid}\r\na=sctp-port:5000\r\na=max-message-size:65536\r\n\
         a=candidate:1 1 udp 2130706431 {ip} {port} typ host\r\na=end-of-candidates\r\n"
    ))
}

fn is_token(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;
    use crate::base::RelayId;

    const OFFER: &str = "v=0\r\no=- 46117 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n\
        m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=ice-ufrag:x\r\n\
        a=fingerprint:sha-256 AB:CD:EF:00:01:02:03:04:05:06:07:08:09:0A:0B:0C:0D:0E:0F:10:11:12:13:14:15:16:17:18:19:1A:1B:1C\r\n\
        a=setup:actpass\r\na=mid:0\r\na=sctp-port:5000\r\n";

    fn target() -> DialTarget {
        DialTarget {
            relay: RelayId::from_bytes([1; 32]),
            addresses: vec!["192.0.2.1:4443".parse().unwrap()],
            ice_ufrag: "abcd".to_owned(),
            ice_password: "p".repeat(22),
            fingerprint: [0xab; 32],
        }
    }

    #[test]
    fn an_offer_contains_media_section_and_certificate() {
        let offer = SdpOffer::parse(OFFER).unwrap();
        assert_eq!(offer.mid, "0");
        assert_eq!(offer.fingerprint[..4], [0xab, 0xcd, 0xef, 0]);
        assert_eq!(SdpOffer::parse("v=0\r\na=mid:0\r\n"), None);
        assert_eq!(SdpOffer::parse(&OFFER.replace(":1C", "")), None);
    }

    #[test]
    fn an_answer_matches_the_specification() {
        let answer = answer(&target(), "[2001:db8::1]:4443".parse().unwrap(), "0").unwrap();
        assert!(answer.contains("\r\na=candidate:1 1 udp 2130706431 2001:db8::1 4443 typ host\r\n"), "{answer}");
        assert!(answer.contains("\r\na=fingerprint:sha-256 AB:AB:"), "{answer}");
        assert!(answer.ends_with("a=end-of-candidates\r\n"));
        assert_eq!(answer.lines().count(), 17);
    }

    #[test]
    fn fields_of_a_target_cannot_add_a_line() {
        let address = target().addresses[0];
        for ufrag in ["abcd\r\na=x", "abc", "ab cd"] {
            assert_eq!(answer(&DialTarget { ice_ufrag: ufrag.to_owned(), ..target() }, address, "0"), None);
        }
        let password = format!("{}\n", "p".repeat(22));
        assert_eq!(answer(&DialTarget { ice_password: password, ..target() }, address, "0"), None);
        assert_eq!(answer(&target(), address, "0\r\na=x"), None);
    }
}
