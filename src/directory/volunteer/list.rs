//! The volunteer list: volunteers and their gateways, valid for five intervals.

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

/// Maximum bytes of a listed volunteer: its profile, and about a hundred bytes of gateways.
const MAX_LISTED_LEN: usize = 512;

/// A list of volunteers that was verified, or created by this authority.
pub type VolunteerList = Document<VolunteerListBody>;
/// A published volunteer list: an encoded `SignedVolunteerList`.
pub type SignedVolunteerList = SignedDocument<VolunteerListBody>;
/// A signed volunteer list with unverified signatures.
pub type UnverifiedVolunteerList = UnverifiedDocument<VolunteerListBody>;

/// A volunteer of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volunteer {
    /// The volunteer's profile. Its family contains only members that name the volunteer too.
    pub profile: VolunteerProfile,
    /// The gateways over which circuits reach the volunteer, the best ranked first: 1 to [`MAX_GATEWAYS`].
    pub gateways: Vec<RelayId>,
}

impl Volunteer {
    /// The volunteer's long-term key.
    #[must_use]
    pub const fn identity(&self) -> RelayId {
        self.profile.identity
    }

    /// The volunteer's keys for a handshake.
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
        let is_not_repeated = |(index, gateway): (usize, &RelayId)| {
            !gateways.iter().skip(index.saturating_add(1)).any(|other| other == gateway)
        };
        require(gateways.iter().enumerate().all(is_not_repeated), "a gateway is listed twice")?;
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
    /// Content with at most [`MAX_VOLUNTEERS`] volunteers, in any order.
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
        let is_ascending = volunteers.is_sorted_by(|one, next| one.identity() < next.identity());
        require(is_ascending, "volunteers are out of order or duplicated")?;
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

    /// The volunteers that this gateway reaches.
    pub fn reached_by(&self, gateway: &RelayId) -> impl Iterator<Item = &Volunteer> {
        let gateway = *gateway;
        self.volunteers().iter().filter(move |volunteer| volunteer.gateways.contains(&gateway))
    }
}
