//! A hop of a path: a relay of the consensus, or a volunteer.

use crate::{
    base::RelayId,
    delegated::Offer,
    directory::{Consensus, ConsensusRelay, Flags, Volunteer, VolunteerList},
    handshake::RelayKeys,
};

/// The relays from which paths are chosen.
#[derive(Clone, Copy)]
pub struct Relays<'a> {
    /// The relays of the consensus, which can be dialled.
    pub consensus: &'a Consensus,
    /// The volunteers, while there is a valid list.
    pub volunteers: Option<&'a VolunteerList>,
    /// The relay or volunteer that must be directly behind the guard. For tests and measurements only, because others
    /// can observe a fixed middle.
    pub middle: Option<RelayId>,
    /// Gateways that no volunteer may follow as middle.
    pub gateways_without_volunteers: &'a [RelayId],
}

impl<'a> From<&'a Consensus> for Relays<'a> {
    /// The relays of the consensus, without volunteers.
    fn from(consensus: &'a Consensus) -> Self {
        Self { consensus, volunteers: None, middle: None, gateways_without_volunteers: &[] }
    }
}

impl<'a> Relays<'a> {
    /// The relay or volunteer with this identity.
    pub(crate) fn hop(&self, identity: &RelayId) -> Option<PathRelay<'a>> {
        let volunteer = || self.volunteers.and_then(|list| list.volunteer(identity)).map(PathRelay::Volunteer);
        self.consensus.relay(identity).map(PathRelay::Listed).or_else(volunteer)
    }

    /// Whether private names and addresses are targets in this network. They are if the consensus allows similar
    /// addresses, as in testnets, or if all exits allow private addresses. One such exit among others must not attract
    /// the private names of all clients.
    pub(crate) fn allow_private_targets(&self) -> bool {
        let mut exits = self.consensus.relays().iter().filter(|relay| relay.flags.contains(Flags::EXIT)).peekable();
        self.consensus.parameters().allows_similar_addresses()
            || (exits.peek().is_some() && exits.all(|exit| exit.profile.exit.private_addresses()))
    }

    /// All volunteers of the list; none without a list.
    pub(super) fn volunteers(&self) -> impl Iterator<Item = &'a Volunteer> + use<'a> {
        self.volunteers.into_iter().flat_map(VolunteerList::volunteers)
    }
}

/// A relay that may be on a path.
#[derive(Clone, Copy)]
pub(crate) enum PathRelay<'a> {
    /// A relay of the consensus, which can be dialled.
    Listed(&'a ConsensusRelay),
    /// A volunteer, which its gateways reach.
    Volunteer(&'a Volunteer),
}

impl<'a> PathRelay<'a> {
    /// The relay's long-term key.
    pub(crate) const fn identity(&self) -> RelayId {
        match self {
            Self::Listed(relay) => relay.identity(),
            Self::Volunteer(volunteer) => volunteer.identity(),
        }
    }

    /// The relay's keys for a handshake.
    pub(crate) fn keys(&self) -> RelayKeys {
        match self {
            Self::Listed(relay) => relay.keys(),
            Self::Volunteer(volunteer) => volunteer.keys(),
        }
    }

    /// The delegated requests that the relay performs.
    pub(crate) const fn offer(&self) -> &'a Offer {
        match self {
            Self::Listed(relay) => &relay.profile.offer,
            Self::Volunteer(volunteer) => &volunteer.profile.offer,
        }
    }

    /// The stated family and operator.
    pub(super) fn family_and_operator(&self) -> (&'a [RelayId], &'a str) {
        match self {
            Self::Listed(relay) => (&relay.profile.family, &relay.profile.operator),
            Self::Volunteer(volunteer) => (&volunteer.profile.family, &volunteer.profile.operator),
        }
    }

    /// The weight for the exit position, relative to other hops of the same variant.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Self::Listed(relay) => relay.weight.into(),
            Self::Volunteer(_) => 1,
        }
    }

    /// Whether the relay `previous` can extend a circuit to this hop.
    pub(super) fn follows(&self, previous: &PathRelay<'_>) -> bool {
        match self {
            Self::Listed(_) => true,
            Self::Volunteer(volunteer) => volunteer.gateways.contains(&previous.identity()),
        }
    }
}
