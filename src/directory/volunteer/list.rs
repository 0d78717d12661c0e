//! The volunteer list: volunteers and their gateways, valid for a few minutes.

use core::{fmt, time::Duration};

use prost::Message;
use rand::CryptoRng;

use super::VolunteerProfile;
use crate::{
    base::{RelayId, WallTime},
    crypto::{self, IdentityKey},
    directory::{
        AuthorityId, MAX_VOLUNTEER_LIST_LEN, MAX_VOLUNTEERS,
        bounded::{self, BoundError, Bounds},
        counting::{Dates, MAX_SIGNATURE_LEN, MAX_SIGNATURES, NotCounted, check_signatures, sign},
        profile::{Impossible, decode_identities, encode_identities, require},
        schema,
    },
    handshake::RelayKeys,
};

/// Maximum gateways of one volunteer.
pub const MAX_GATEWAYS: usize = 3;

const CONTEXT: &str = "directory volunteers";
const LONGEST_VALIDITY: Duration = Duration::from_secs(60 * 60);
const SIGNED_BOUNDS: Bounds = Bounds {
    len: MAX_VOLUNTEER_LIST_LEN,
    fields: &[(1, 1, MAX_VOLUNTEER_LIST_LEN), (2, MAX_SIGNATURES, MAX_SIGNATURE_LEN)],
};
/// Maximum bytes of a listed volunteer with its gateways, which take slightly more than a hundred.
const MAX_LISTED_LEN: usize = 512;
const BOUNDS: Bounds = Bounds { len: MAX_VOLUNTEER_LIST_LEN, fields: &[(4, MAX_VOLUNTEERS, MAX_LISTED_LEN)] };

/// Why a volunteer list is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolunteerListError {
    /// The bytes are no volunteer list.
    #[error("volunteer list: {0}")]
    Malformed(#[from] BoundError),
    /// Too few authorities have signed it, or its dates exclude it.
    #[error("volunteer list: {0}")]
    NotCounted(#[from] NotCounted),
    /// It contradicts itself or the specification.
    #[error("volunteer list: {0}")]
    Impossible(#[from] Impossible),
}

/// A published volunteer list: an encoded `SignedVolunteerList`.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedVolunteerList(Vec<u8>);

impl SignedVolunteerList {
    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Converts it into its bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl fmt::Debug for SignedVolunteerList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedVolunteerList({} bytes)", self.0.len())
    }
}

/// A signed volunteer list with unverified signatures.
#[derive(Clone)]
pub struct UnverifiedVolunteerList {
    signed: schema::SignedVolunteerList,
}

impl UnverifiedVolunteerList {
    /// Decodes a `SignedVolunteerList`.
    ///
    /// # Errors
    /// [`VolunteerListError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, VolunteerListError> {
        Ok(Self { signed: bounded::decode(bytes, &SIGNED_BOUNDS)? })
    }

    /// The list, if more than half of `authorities` have signed it, it is valid at `now` and not older than
    /// `previous`, the one in use.
    ///
    /// # Errors
    /// One for each reason (`proto/07-directory.md`, "When a consensus counts").
    pub fn verify(
        self,
        authorities: &[AuthorityId],
        now: WallTime,
        previous: Option<&VolunteerList>,
    ) -> Result<VolunteerList, VolunteerListError> {
        check_signatures(authorities, CONTEXT, &self.signed.list, &self.signed.signatures)?;
        let list = VolunteerList::decode(&self.signed.list)?;
        list.dates.check(&list.digest, now, previous.map(|previous| (&previous.dates, &previous.digest)))?;
        Ok(list)
    }
}

/// A volunteer of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volunteer {
    /// Its statement about itself; its family is reduced to the members that name it too.
    pub profile: VolunteerProfile,
    /// The relays over which it can be reached, the best ranked first: 1 to [`MAX_GATEWAYS`].
    pub gateways: Vec<RelayId>,
}

impl Volunteer {
    /// Its long-term key.
    #[must_use]
    pub const fn identity(&self) -> RelayId {
        self.profile.identity
    }

    /// Its keys for a handshake.
    #[must_use]
    pub fn keys(&self) -> RelayKeys {
        self.profile.keys()
    }

    fn decode(listed: schema::ListedVolunteer) -> Result<Self, Impossible> {
        let profile = VolunteerProfile::decode(listed.profile.ok_or(Impossible("a volunteer has no profile"))?)?;
        let gateways = decode_identities(&listed.gateways).ok_or(Impossible("a gateway is not 32 bytes"))?;
        require(
            (1..=MAX_GATEWAYS).contains(&gateways.len()),
            "the number of a volunteer's gateways is not one to three",
        )?;
        let once =
            |(at, gateway): (usize, &RelayId)| !gateways.iter().skip(at.saturating_add(1)).any(|it| it == gateway);
        require(gateways.iter().enumerate().all(once), "a gateway is listed twice")?;
        require(!gateways.contains(&profile.identity), "a volunteer is its own gateway")?;
        Ok(Self { profile, gateways })
    }
}

/// A list of volunteers: verified, or made by this authority.
#[derive(Clone, PartialEq, Eq)]
pub struct VolunteerList {
    dates: Dates,
    volunteers: Vec<Volunteer>,
    /// SHA-256 of the signed bytes.
    digest: [u8; 32],
}

impl VolunteerList {
    /// A list of `volunteers`, in any order, at most [`MAX_VOLUNTEERS`], with its encoding.
    ///
    /// # Errors
    /// When the dates are out of order or too far apart, a volunteer is listed twice, or the list is too long.
    pub(in crate::directory) fn new(
        (valid_after, fresh_until, valid_until): (WallTime, WallTime, WallTime),
        volunteers: impl IntoIterator<Item = Volunteer>,
    ) -> Result<(Self, Vec<u8>), VolunteerListError> {
        let mut volunteers: Vec<_> = volunteers.into_iter().collect();
        volunteers.sort_unstable_by_key(Volunteer::identity);
        let encode = |volunteer: &Volunteer| schema::ListedVolunteer {
            profile: Some(volunteer.profile.encode()),
            gateways: encode_identities(&volunteer.gateways),
        };
        let encoded = schema::VolunteerList {
            valid_after: valid_after.as_unix(),
            fresh_until: fresh_until.as_unix(),
            valid_until: valid_until.as_unix(),
            volunteers: volunteers.iter().map(encode).collect(),
        }
        .encode_to_vec();
        // A list that others would reject must not be signed.
        Ok((Self::decode(&encoded)?, encoded))
    }

    /// Signs the encoding of a list with the keys of authorities.
    pub(in crate::directory) fn sign<'a>(
        encoded: Vec<u8>,
        keys: impl IntoIterator<Item = &'a IdentityKey>,
    ) -> SignedVolunteerList {
        let signatures = sign(CONTEXT, &encoded, keys);
        SignedVolunteerList(schema::SignedVolunteerList { list: encoded, signatures }.encode_to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<Self, VolunteerListError> {
        let document: schema::VolunteerList = bounded::decode(bytes, &BOUNDS)?;
        let dates = (document.valid_after, document.fresh_until, document.valid_until);
        let dates = Dates::decode(dates, LONGEST_VALIDITY)?;
        let volunteers = document.volunteers.into_iter().map(Volunteer::decode).collect::<Result<Vec<_>, _>>()?;
        let ascending = volunteers.is_sorted_by(|one, next| one.identity() < next.identity());
        require(ascending, "volunteers are out of order or duplicated")?;
        Ok(Self { dates, volunteers, digest: crypto::sha256(bytes) })
    }

    /// Start of its validity.
    #[must_use]
    pub const fn valid_after(&self) -> WallTime {
        self.dates.valid_after
    }

    /// Time from which on a newer one should be fetched.
    #[must_use]
    pub const fn fresh_until(&self) -> WallTime {
        self.dates.fresh_until
    }

    /// End of its validity.
    #[must_use]
    pub const fn valid_until(&self) -> WallTime {
        self.dates.valid_until
    }

    /// Whether its validity has ended at `now`.
    #[must_use]
    pub fn is_expired(&self, now: WallTime) -> bool {
        self.dates.is_expired(now)
    }

    /// Time of the next fetch: random within half an interval after `fresh_until`.
    pub fn next_fetch<R: CryptoRng + ?Sized>(&self, rng: &mut R) -> WallTime {
        self.dates.next_fetch(rng)
    }

    /// Every volunteer, ascending by identity.
    #[must_use]
    pub fn volunteers(&self) -> &[Volunteer] {
        &self.volunteers
    }

    /// The volunteer with this identity.
    #[must_use]
    pub fn volunteer(&self, identity: &RelayId) -> Option<&Volunteer> {
        let position = self.volunteers.binary_search_by(|volunteer| volunteer.identity().cmp(identity)).ok()?;
        self.volunteers.get(position)
    }

    /// The volunteers that can be reached over this gateway.
    pub fn reached_by(&self, gateway: &RelayId) -> impl Iterator<Item = &Volunteer> {
        let gateway = *gateway;
        self.volunteers.iter().filter(move |volunteer| volunteer.gateways.contains(&gateway))
    }

    /// SHA-256 of the signed bytes: identical for identical lists.
    #[must_use]
    pub const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

impl fmt::Debug for VolunteerList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolunteerList")
            .field("valid_after", &self.dates.valid_after)
            .field("valid_until", &self.dates.valid_until)
            .field("volunteers", &self.volunteers.len())
            .finish_non_exhaustive()
    }
}
