//! Profiles: a relay's statements about itself, in its descriptor and in the consensus (`proto/07-directory.md` §2).

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::schema;
use crate::{
    base::{DialTarget, RelayId},
    crypto::OnionPublic,
    delegated::{EngineName, HttpOffer, Offer},
    exit_policy::{MAX_RANGES, PortRange, Summary},
    handshake::RelayKeys,
};

const MAX_FAMILY: usize = 64;
const MAX_OPERATOR_LEN: usize = 64;
const MAX_VERSION_LEN: usize = 32;

/// Why the content of a well-formed document is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Impossible(pub(super) &'static str);

/// A relay's profile. `Debug` prints the identity only.
#[derive(Clone, PartialEq, Eq)]
pub struct Profile {
    /// The relay's long-term key.
    pub identity: RelayId,
    /// The UDP addresses of the relay, the preferred one first: one IPv4 or IPv6 address, or one of each. No address is
    /// IPv4-mapped.
    pub addresses: Vec<SocketAddr>,
    /// ICE user-name fragment (RFC 8839 §5.4): 4 to 256 letters, digits, `+` or `/`.
    pub ice_ufrag: String,
    /// ICE password (RFC 8839 §5.4): 22 to 256 letters, digits, `+` or `/`. Public.
    pub ice_password: String,
    /// SHA-256 of the relay's DTLS certificate (DER).
    pub fingerprint: [u8; 32],
    /// The current onion key.
    pub onion_key: OnionPublic,
    /// Relays of the same operator, at most 64. A member counts only if it names this relay too.
    pub family: Vec<RelayId>,
    /// The operator, empty if not stated: at most 64 bytes of printable ASCII.
    pub operator: String,
    /// The summary of the exit policy; empty if the relay is not an exit.
    pub exit: Summary,
    /// The delegated requests that the relay performs; empty for none.
    pub offer: Offer,
    /// The software and its version: at most 32 bytes of printable ASCII.
    pub version: String,
}

impl Profile {
    /// The relay's dial target.
    #[must_use]
    pub fn dial_target(&self) -> DialTarget {
        DialTarget {
            relay: self.identity,
            addresses: self.addresses.clone(),
            ice_ufrag: self.ice_ufrag.clone(),
            ice_password: self.ice_password.clone(),
            fingerprint: self.fingerprint,
        }
    }

    /// The relay's keys for a handshake.
    #[must_use]
    pub fn keys(&self) -> RelayKeys {
        RelayKeys { identity: self.identity, onion_key: self.onion_key }
    }

    /// Checks the profile (`proto/07-directory.md` §2).
    ///
    /// # Errors
    /// When the profile is invalid.
    pub(super) fn check(&self) -> Result<(), Impossible> {
        let ipv4 = self.addresses.iter().filter(|address| address.is_ipv4()).count();
        let ipv6 = self.addresses.len().saturating_sub(ipv4);
        let is_one_each = ipv4 <= 1 && ipv6 <= 1 && !self.addresses.is_empty();
        require(is_one_each, "the addresses are not one of IPv4 or IPv6, or one of each")?;
        require(self.addresses.iter().all(|address| address.port() != 0), "an address has port 0")?;
        require(self.addresses.iter().all(|address| is_unicast(address.ip())), "an address is not a single host's")?;
        require(is_ice_text(&self.ice_ufrag, 4), "the ICE ufrag is not 4 to 256 ICE characters")?;
        require(is_ice_text(&self.ice_password, 22), "the ICE password is not 22 to 256 ICE characters")?;
        let Self { identity, onion_key, family, operator, offer, version, .. } = self;
        ProfileFields { identity, onion_key, family, operator, offer, version }.check()
    }

    pub(super) fn encode(&self) -> schema::Profile {
        schema::Profile {
            identity: self.identity.as_bytes().to_vec(),
            addresses: self.addresses.iter().map(encode_address).collect(),
            ice_ufrag: self.ice_ufrag.clone(),
            ice_password: self.ice_password.clone(),
            fingerprint: self.fingerprint.to_vec(),
            onion_key: self.onion_key.0.to_vec(),
            family: encode_identities(&self.family),
            operator: self.operator.clone(),
            exit: (!self.exit.is_empty()).then(|| encode_summary(&self.exit)),
            offer: encode_offer(&self.offer),
            version: self.version.clone(),
        }
    }

    pub(super) fn decode(profile: schema::Profile) -> Result<Self, Impossible> {
        let addresses: Option<Vec<_>> = profile.addresses.iter().map(decode_address).collect();
        let decoded = Self {
            identity: decode_identity(&profile.identity).ok_or(Impossible("the identity is not 32 bytes"))?,
            addresses: addresses.ok_or(Impossible("an address is not one of IPv4 or IPv6 with a port"))?,
            ice_ufrag: profile.ice_ufrag,
            ice_password: profile.ice_password,
            fingerprint: to_array(&profile.fingerprint).ok_or(Impossible("the fingerprint is not 32 bytes"))?,
            onion_key: decode_onion_key(&profile.onion_key)?,
            family: decode_family(&profile.family)?,
            operator: profile.operator,
            exit: match &profile.exit {
                Some(exit) => decode_summary(exit)
                    .ok_or(Impossible("the exit's port ranges are invalid, out of order or too many"))?,
                None => Summary::default(),
            },
            offer: decode_offer(profile.offer)?,
            version: profile.version,
        };
        decoded.check()?;
        Ok(decoded)
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// The common fields of the profiles of relays and volunteers.
pub(super) struct ProfileFields<'a> {
    pub(super) identity: &'a RelayId,
    pub(super) onion_key: &'a OnionPublic,
    pub(super) family: &'a [RelayId],
    pub(super) operator: &'a str,
    pub(super) offer: &'a Offer,
    pub(super) version: &'a str,
}

impl ProfileFields<'_> {
    /// Checks the fields (`proto/07-directory.md` §2).
    ///
    /// # Errors
    /// When a field is invalid.
    pub(super) fn check(&self) -> Result<(), Impossible> {
        require(self.onion_key.0 != [0; 32], "the onion key is zero")?;
        require(self.family.len() <= MAX_FAMILY, "the family has more than 64 relays")?;
        require(!self.family.contains(self.identity), "the relay names itself as its family")?;
        require(is_printable(self.operator, MAX_OPERATOR_LEN), "the operator is not at most 64 printable characters")?;
        require(self.offer.is_valid(), "the offer is out of order or too long")?;
        require(is_printable(self.version, MAX_VERSION_LEN), "the version is not at most 32 printable characters")
    }
}

/// The error `reason` unless `condition` is true.
pub(super) fn require(condition: bool, reason: &'static str) -> Result<(), Impossible> {
    if condition { Ok(()) } else { Err(Impossible(reason)) }
}

/// `bytes` as an array; `None` unless their number is `N`.
pub(super) fn to_array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

/// The identity in these bytes; `None` unless there are 32.
pub(crate) fn decode_identity(bytes: &[u8]) -> Option<RelayId> {
    to_array(bytes).map(RelayId::from_bytes)
}

pub(super) fn decode_onion_key(bytes: &[u8]) -> Result<OnionPublic, Impossible> {
    to_array(bytes).map(OnionPublic).ok_or(Impossible("the onion key is not 32 bytes"))
}

pub(super) fn decode_family(family: &[Vec<u8>]) -> Result<Vec<RelayId>, Impossible> {
    decode_identities(family).ok_or(Impossible("a family member is not 32 bytes"))
}

pub(super) fn encode_identities(identities: &[RelayId]) -> Vec<Vec<u8>> {
    identities.iter().map(|identity| identity.as_bytes().to_vec()).collect()
}

pub(super) fn decode_identities(identities: &[Vec<u8>]) -> Option<Vec<RelayId>> {
    identities.iter().map(|identity| decode_identity(identity)).collect()
}

/// Whether the address is of a single host, and not an IPv4 address mapped into IPv6.
fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()),
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_multicast() || ip.to_ipv4_mapped().is_some()),
    }
}

fn is_ice_text(text: &str, min_len: usize) -> bool {
    let is_ice = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    (min_len..=256).contains(&text.len()) && text.bytes().all(is_ice)
}

fn is_printable(text: &str, max_len: usize) -> bool {
    text.len() <= max_len && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

pub(super) fn encode_address(address: &SocketAddr) -> schema::Address {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    schema::Address { ip, port: address.port().into() }
}

pub(super) fn decode_address(address: &schema::Address) -> Option<SocketAddr> {
    let ip = match address.ip.len() {
        4 => Ipv4Addr::from(to_array::<4>(&address.ip)?).into(),
        _ => Ipv6Addr::from(to_array::<16>(&address.ip)?).into(),
    };
    Some(SocketAddr::new(ip, address.port.try_into().ok()?))
}

pub(super) fn encode_offer(offer: &Offer) -> Option<schema::Offer> {
    if offer.is_empty() {
        return None;
    }
    let (hosts, any_host) = match &offer.requests {
        HttpOffer::None => (Vec::new(), false),
        HttpOffer::Hosts(hosts) => (hosts.clone(), false),
        HttpOffer::Open => (Vec::new(), true),
    };
    let engines = offer.engines.iter().map(|engine| engine.as_str().to_owned()).collect();
    Some(schema::Offer { engines, hosts, any_host })
}

pub(super) fn decode_offer(offer: Option<schema::Offer>) -> Result<Offer, Impossible> {
    let Some(offer) = offer else { return Ok(Offer::default()) };
    let requests = match (offer.any_host, offer.hosts) {
        (true, _) => HttpOffer::Open,
        (false, hosts) if hosts.is_empty() => HttpOffer::None,
        (false, hosts) => HttpOffer::Hosts(hosts),
    };
    let engines = offer.engines.iter().map(|engine| EngineName::parse(engine)).collect::<Option<_>>();
    let engines = engines.ok_or(Impossible("an engine's name in the offer is invalid"))?;
    Ok(Offer { engines, requests })
}

fn encode_summary(summary: &Summary) -> schema::ExitSummary {
    let encode = |ranges: &[PortRange]| {
        let encode = |range: &PortRange| schema::PortRange { first: range.first().into(), last: range.last().into() };
        ranges.iter().map(encode).collect()
    };
    schema::ExitSummary {
        ipv4: encode(summary.ipv4()),
        ipv6: encode(summary.ipv6()),
        private_addresses: summary.private_addresses(),
    }
}

fn decode_summary(summary: &schema::ExitSummary) -> Option<Summary> {
    let decode = |ranges: &[schema::PortRange]| {
        let decode =
            |range: &schema::PortRange| PortRange::new(range.first.try_into().ok()?, range.last.try_into().ok()?);
        let ranges: Vec<PortRange> = ranges.iter().map(decode).collect::<Option<_>>()?;
        let is_ascending = ranges.is_sorted_by(|one, next| one.last() < next.first());
        (is_ascending && ranges.len() <= MAX_RANGES).then_some(ranges)
    };
    Some(Summary::new(decode(&summary.ipv4)?, decode(&summary.ipv6)?, summary.private_addresses))
}
