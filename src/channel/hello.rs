//! Codec of the two handshake messages of a channel, and the bytes that a proof signs (`proto/02-channel.md` §2 and
//! §3).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::base::RelayId;

use super::ChannelError;

/// The versions that this implementation supports.
pub(super) const VERSIONS: [u16; 1] = [1];
/// Maximum versions in a HELLO.
const MAX_VERSIONS: usize = 16;
const HELLO: u8 = 1;
const PROOF: u8 = 2;
const FAMILY_NONE: u8 = 0;
const FAMILY_IPV4: u8 = 4;
const FAMILY_IPV6: u8 = 6;
/// The capability bit of a relay that can't be dialled: circuits may be extended to that relay over this channel.
pub(super) const REACH: u64 = 1;
/// Separates a channel proof from other signatures of an identity key.
pub(super) const PROOF_CONTEXT: &str = "channel";

/// One end of a channel, as encoded in a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ChannelEnd {
    /// The end that dialled.
    Dialler = 1,
    /// The end that accepted the link.
    Listener = 2,
}

impl ChannelEnd {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Listener,
            Self::Listener => Self::Dialler,
        }
    }
}

/// The first message of each end.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct ChannelHello {
    /// Versions that the sender supports.
    pub(super) versions: Vec<u16>,
    /// Bits for capabilities beyond the version; unknown bits are ignored.
    pub(super) capabilities: u64,
    /// The relay identity that the sender will prove; `None` for a client, which proves none.
    pub(super) identity: Option<RelayId>,
    /// Random bytes, new for each channel.
    pub(super) nonce: [u8; 32],
    /// The receiver's address, as the sender observes it.
    pub(super) observed: Option<SocketAddr>,
}

impl ChannelHello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.push(HELLO);
        self.encode_versions(&mut out);
        out.extend_from_slice(&self.capabilities.to_be_bytes());
        out.extend_from_slice(&identity_bytes(self.identity));
        out.extend_from_slice(&self.nonce);
        let (family, address) = match self.observed.map(|observed| observed.ip()) {
            None => (FAMILY_NONE, [0; 16]),
            Some(IpAddr::V4(ip)) => (FAMILY_IPV4, ip.to_ipv6_compatible().octets()),
            Some(IpAddr::V6(ip)) => (FAMILY_IPV6, ip.octets()),
        };
        out.push(family);
        out.extend_from_slice(&address);
        out.extend_from_slice(&self.observed.map_or(0, |observed| observed.port()).to_be_bytes());
        out
    }

    fn encode_versions(&self, out: &mut Vec<u8>) {
        let count = self.versions.len().min(MAX_VERSIONS);
        out.push(u8::try_from(count).unwrap_or(0));
        for version in self.versions.iter().take(count) {
            out.extend_from_slice(&version.to_be_bytes());
        }
    }

    pub(super) fn decode(message: &[u8]) -> Result<Self, ChannelError> {
        Self::read(message).ok_or(ChannelError::Malformed)
    }

    fn read(message: &[u8]) -> Option<Self> {
        let ([HELLO, count], mut rest) = message.split_first_chunk()? else { return None };
        if *count == 0 || usize::from(*count) > MAX_VERSIONS {
            return None;
        }
        let mut versions = Vec::with_capacity(usize::from(*count));
        for _ in 0..*count {
            versions.push(u16::from_be_bytes(take(&mut rest)?));
        }
        let capabilities = u64::from_be_bytes(take(&mut rest)?);
        let identity: [u8; 32] = take(&mut rest)?;
        let nonce = take(&mut rest)?;
        let [family] = take(&mut rest)?;
        let address: [u8; 16] = take(&mut rest)?;
        let port = u16::from_be_bytes(take(&mut rest)?);
        let observed = match (family, address) {
            (FAMILY_NONE, address) if address == [0; 16] && port == 0 => None,
            (FAMILY_IPV4, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]) => {
                Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port))
            }
            (FAMILY_IPV6, address) => Some(SocketAddr::new(Ipv6Addr::from(address).into(), port)),
            _ => return None,
        };
        let identity = (identity != [0; 32]).then(|| RelayId::from_bytes(identity));
        rest.is_empty().then_some(Self { versions, capabilities, identity, nonce, observed })
    }

    /// The highest version that both ends support.
    pub(super) fn common_version(&self, other: &Self) -> Option<u16> {
        self.versions.iter().filter(|version| other.versions.contains(version)).max().copied()
    }
}

/// The bytes that a proof signs: first the signer's end and the version. Then, for the dialler and after that for the
/// listener, the fields of the HELLO except the observed address, and the SHA-256 of the certificate.
pub(super) fn proof_message(
    signer: ChannelEnd,
    version: u16,
    dialler: (&ChannelHello, &[u8; 32]),
    listener: (&ChannelHello, &[u8; 32]),
) -> Vec<u8> {
    let mut out = Vec::with_capacity(320);
    out.push(signer as u8);
    out.extend_from_slice(&version.to_be_bytes());
    for (hello, certificate) in [dialler, listener] {
        hello.encode_versions(&mut out);
        out.extend_from_slice(&hello.capabilities.to_be_bytes());
        out.extend_from_slice(&identity_bytes(hello.identity));
        out.extend_from_slice(&hello.nonce);
        out.extend_from_slice(certificate);
    }
    out
}

pub(super) fn encode_proof(signature: &[u8; 64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(65);
    out.push(PROOF);
    out.extend_from_slice(signature);
    out
}

pub(super) fn decode_proof(message: &[u8]) -> Result<[u8; 64], ChannelError> {
    match message.split_first() {
        Some((&PROOF, signature)) => signature.try_into().map_err(|_| ChannelError::Malformed),
        _ => Err(ChannelError::Malformed),
    }
}

fn identity_bytes(identity: Option<RelayId>) -> [u8; 32] {
    identity.map_or([0; 32], |identity| *identity.as_bytes())
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (field, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*field)
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use proptest::prelude::*;

    use super::*;
    use crate::crypto::{IdentityKey, vectors};

    fn hello(observed: Option<SocketAddr>) -> ChannelHello {
        ChannelHello {
            versions: vec![1, 2],
            capabilities: 5,
            identity: Some(RelayId::from_bytes([3; 32])),
            nonce: [4; 32],
            observed,
        }
    }

    #[test]
    fn an_encoded_hello_decodes_to_the_same_hello() {
        for observed in [None, Some("192.0.2.1:4443".parse().unwrap()), Some("[2001:db8::1]:1".parse().unwrap())] {
            for identity in [None, Some(RelayId::from_bytes([3; 32]))] {
                let hello = ChannelHello { identity, ..hello(observed) };
                assert_eq!(ChannelHello::decode(&hello.encode()), Ok(hello));
            }
        }
    }

    #[test]
    fn a_clients_hello_is_as_long_as_a_relays_hello() {
        let client = ChannelHello { identity: None, ..hello(None) };
        assert_eq!(client.encode().len(), hello(Some("192.0.2.1:4443".parse().unwrap())).encode().len());
    }

    #[test]
    fn a_hello_that_is_truncated_or_has_trailing_bytes_is_refused() {
        let bytes = hello(None).encode();
        for length in 0..bytes.len() {
            assert!(ChannelHello::decode(&bytes[..length]).is_err());
        }
        assert!(ChannelHello::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn a_change_of_any_signed_field_changes_the_signed_bytes() {
        let (a, b) = (hello(None), ChannelHello { nonce: [9; 32], ..hello(None) });
        let reference = proof_message(ChannelEnd::Dialler, 1, (&a, &[1; 32]), (&b, &[2; 32]));
        let others = [
            proof_message(ChannelEnd::Listener, 1, (&a, &[1; 32]), (&b, &[2; 32])),
            proof_message(ChannelEnd::Dialler, 2, (&a, &[1; 32]), (&b, &[2; 32])),
            proof_message(ChannelEnd::Dialler, 1, (&a, &[3; 32]), (&b, &[2; 32])),
            proof_message(ChannelEnd::Dialler, 1, (&a, &[1; 32]), (&b, &[3; 32])),
            proof_message(ChannelEnd::Dialler, 1, (&b, &[1; 32]), (&a, &[2; 32])),
            proof_message(
                ChannelEnd::Dialler,
                1,
                (&ChannelHello { identity: None, ..a.clone() }, &[1; 32]),
                (&b, &[2; 32]),
            ),
            proof_message(
                ChannelEnd::Dialler,
                1,
                (&ChannelHello { capabilities: 0, ..a.clone() }, &[1; 32]),
                (&b, &[2; 32]),
            ),
            proof_message(
                ChannelEnd::Dialler,
                1,
                (&ChannelHello { versions: vec![1], ..a.clone() }, &[1; 32]),
                (&b, &[2; 32]),
            ),
        ];
        assert!(others.iter().all(|other| *other != reference));
    }

    #[test]
    fn hellos_and_proofs_match_the_vectors() {
        let vectors = vectors::read(include_str!("../../proto/vectors/channel.json"));
        for channel in vectors::cases(&vectors, "channels") {
            let [dialler, listener] = ["dialler", "dialled"].map(|end| {
                let end = &channel[end];
                let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
                let observed = SocketAddr::new(
                    text(&end["observed"][0]).parse().unwrap(),
                    u16::try_from(end["observed"][1].as_u64().unwrap()).unwrap(),
                );
                let identity: [u8; 32] = vectors::array(&end["identity"]);
                let versions = end["versions"].as_array().unwrap();
                let hello = ChannelHello {
                    versions: versions.iter().map(|version| version.as_u64().unwrap().try_into().unwrap()).collect(),
                    capabilities: end["capabilities"].as_u64().unwrap(),
                    identity: (identity != [0; 32]).then(|| RelayId::from_bytes(identity)),
                    nonce: vectors::array(&end["nonce"]),
                    observed: Some(observed),
                };
                assert_eq!(hello.encode(), vectors::bytes(&end["hello"]));
                assert_eq!(ChannelHello::decode(&vectors::bytes(&end["hello"])).as_ref(), Ok(&hello));
                (hello, vectors::array(&end["certificate"]))
            });
            assert_eq!(dialler.0.common_version(&listener.0), Some(1));
            for (end, json) in [(ChannelEnd::Dialler, &channel["dialler"]), (ChannelEnd::Listener, &channel["dialled"])]
            {
                let message = proof_message(end, 1, (&dialler.0, &dialler.1), (&listener.0, &listener.1));
                assert_eq!(message, vectors::bytes(&json["proof_message"]));
                if !json["proof"].is_null() {
                    let key = IdentityKey::from_bytes(&vectors::array(&json["seed"]));
                    assert_eq!(encode_proof(&key.sign(PROOF_CONTEXT, &message)), vectors::bytes(&json["proof"]));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_decoded_hello_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), valid_start in any::<bool>()) {
            let mut bytes = bytes;
            if valid_start && bytes.len() > 2 {
                bytes[0] = HELLO;
                bytes[1] = 1;
                bytes.resize(97, 0);
            }
            if let Ok(hello) = ChannelHello::decode(&bytes) {
                prop_assert_eq!(hello.encode(), bytes);
            }
        }
    }
}
