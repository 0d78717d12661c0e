//! The volunteer list: volunteers and their gateways, valid for a few minutes.

use core::{fmt, time::Duration};

use super::VolunteerProfile;
use crate::{
    base::RelayId,
    directory::{
        Dates, Document, DocumentError, DocumentKind, MAX_VOLUNTEER_LIST_LEN, MAX_VOLUNTEERS, SignedDocument,
        UnverifiedDocument,
        profile::{Impossible, decode_identities, encode_identities, require},
        schema,
    },
    handshake::RelayKeys,
};

/// Maximum gateways of one volunteer.
pub const MAX_GATEWAYS: usize = 3;

/// Maximum bytes of a listed volunteer with its gateways, which take slightly more than a hundred.
const MAX_LISTED_LEN: usize = 512;

/// A list of volunteers: verified, or made by this authority.
pub type VolunteerList = Document<VolunteerListBody>;
/// A published volunteer list: an encoded `SignedVolunteerList`.
pub type SignedVolunteerList = SignedDocument<VolunteerListBody>;
/// A signed volunteer list with unverified signatures.
pub type UnverifiedVolunteerList = UnverifiedDocument<VolunteerListBody>;

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

    fn encode(&self) -> schema::ListedVolunteer {
        let gateways = encode_identities(&self.gateways);
        schema::ListedVolunteer { profile: Some(self.profile.encode()), gateways }
    }
}

/// The content of a volunteer list.
#[derive(Clone, PartialEq, Eq)]
pub struct VolunteerListBody {
    /// Ascending by identity.
    volunteers: Vec<Volunteer>,
}

impl VolunteerListBody {
    /// The content with `volunteers`, in any order, at most [`MAX_VOLUNTEERS`].
    pub(in crate::directory) fn new(volunteers: impl IntoIterator<Item = Volunteer>) -> Self {
        let mut volunteers: Vec<_> = volunteers.into_iter().collect();
        volunteers.sort_unstable_by_key(Volunteer::identity);
        Self { volunteers }
    }
}

impl DocumentKind for VolunteerListBody {
    const NAME: &'static str = "volunteer list";
    const PURPOSE: &'static str = "directory volunteers";
    const MAX_LEN: usize = MAX_VOLUNTEER_LIST_LEN;
    const MAX_VALIDITY: Duration = Duration::from_secs(60 * 60);
    const REPEATED: &'static [(u32, usize, usize)] = &[(4, MAX_VOLUNTEERS, MAX_LISTED_LEN)];
    type Schema = schema::VolunteerList;

    fn decode(document: schema::VolunteerList) -> Result<(Self, Dates), DocumentError> {
        let volunteers = document.volunteers.into_iter().map(Volunteer::decode).collect::<Result<Vec<_>, _>>()?;
        let ascending = volunteers.is_sorted_by(|one, next| one.identity() < next.identity());
        require(ascending, "volunteers are out of order or duplicated")?;
        let dates = Dates::from_unix(document.valid_after, document.fresh_until, document.valid_until);
        Ok((Self { volunteers }, dates))
    }

    fn encode(&self, dates: &Dates) -> schema::VolunteerList {
        schema::VolunteerList {
            valid_after: dates.valid_after.as_unix(),
            fresh_until: dates.fresh_until.as_unix(),
            valid_until: dates.valid_until.as_unix(),
            volunteers: self.volunteers.iter().map(Volunteer::encode).collect(),
        }
    }
}

impl fmt::Debug for VolunteerListBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} volunteers", self.volunteers.len())
    }
}

impl VolunteerList {
    /// Every volunteer, ascending by identity.
    #[must_use]
    pub fn volunteers(&self) -> &[Volunteer] {
        &self.body().volunteers
    }

    /// The volunteer with this identity.
    #[must_use]
    pub fn volunteer(&self, identity: &RelayId) -> Option<&Volunteer> {
        let position = self.volunteers().binary_search_by(|volunteer| volunteer.identity().cmp(identity)).ok()?;
        self.volunteers().get(position)
    }

    /// The volunteers that can be reached over this gateway.
    pub fn reached_by(&self, gateway: &RelayId) -> impl Iterator<Item = &Volunteer> {
        let gateway = *gateway;
        self.volunteers().iter().filter(move |volunteer| volunteer.gateways.contains(&gateway))
    }
}
