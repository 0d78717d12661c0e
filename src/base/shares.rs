//! Shares of a cap: units counted by owner, so that no owner can hold all of them.

use core::{fmt, net::IpAddr};
use std::collections::{BTreeSet, HashMap};

use super::{AddressPrefix, RelayId};

/// The part of a cap that one source may hold: a sixteenth.
const SOURCE_PART: usize = 16;
/// The part of a cap that one network, or one listed relay, may hold: a quarter.
const LARGE_PART: usize = 4;

/// The owner of units of a cap, or of a rate. Prints redacted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A source within its network.
    Source(AddressPrefix, AddressPrefix),
    /// A listed relay, which carries the circuits of many clients.
    Relay(RelayId),
}

impl Owner {
    /// The owner of the units of an address.
    #[must_use]
    pub fn of_address(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self::Source(AddressPrefix::source(address), AddressPrefix::network(address))
    }

    const fn network(&self) -> Option<AddressPrefix> {
        match self {
            Self::Source(_, network) => Some(*network),
            Self::Relay(_) => None,
        }
    }

    const fn part(&self) -> usize {
        match self {
            Self::Source(..) => SOURCE_PART,
            Self::Relay(_) => LARGE_PART,
        }
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner([redacted])")
    }
}

/// A refusal of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtCap {
    /// The owner, or its network, holds its part.
    Part,
    /// All units are held.
    All,
}

/// One that holds units: an owner, or the sources of a network together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Party {
    Owner(Owner),
    Network(AddressPrefix),
}

/// Units of a cap, by owner. A source holds at most a sixteenth, a network and a listed relay a quarter.
///
/// Memory: a few entries for each owner with units.
pub struct Shares {
    cap: usize,
    all: usize,
    by_owner: HashMap<Owner, usize>,
    /// The sources of a network in the order of their units, with the sum.
    by_network: HashMap<AddressPrefix, (usize, BTreeSet<(usize, Owner)>)>,
    /// Ordered by the units in relation to the part of each.
    order: BTreeSet<(usize, Party)>,
}

impl Shares {
    /// `cap` units without an owner.
    #[must_use]
    pub fn new(cap: usize) -> Self {
        Self { cap, all: 0, by_owner: HashMap::new(), by_network: HashMap::new(), order: BTreeSet::new() }
    }

    /// The units that have an owner.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.all
    }

    /// Whether no unit has an owner.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.all == 0
    }

    /// Gives out no further unit from now on.
    pub const fn close(&mut self) {
        self.cap = 0;
    }

    /// Whether `owner` may take one more unit.
    ///
    /// # Errors
    /// When a part or the whole cap is reached. A reached part precedes.
    pub fn check(&self, owner: &Owner) -> Result<(), AtCap> {
        let of_network = owner.network().map_or(0, |network| self.of_network(&network));
        if self.held(owner) >= self.cap.div_ceil(owner.part()) || of_network >= self.cap.div_ceil(LARGE_PART) {
            return Err(AtCap::Part);
        }
        if self.all < self.cap { Ok(()) } else { Err(AtCap::All) }
    }

    /// Takes one unit for `owner`.
    ///
    /// # Errors
    /// As [`check`](Self::check); then nothing is taken.
    pub fn take(&mut self, owner: &Owner) -> Result<(), AtCap> {
        self.check(owner)?;
        self.set(owner, self.held(owner).saturating_add(1));
        Ok(())
    }

    /// Releases a unit of `owner`.
    pub fn release(&mut self, owner: &Owner) {
        self.set(owner, self.held(owner).saturating_sub(1));
    }

    /// The units of an owner.
    #[must_use]
    pub fn held(&self, owner: &Owner) -> usize {
        self.by_owner.get(owner).copied().unwrap_or_default()
    }

    /// The owner closest to its part. In a network that is closer to its own, the source with the most units.
    #[must_use]
    pub fn fullest(&self) -> Option<Owner> {
        match self.order.last()?.1 {
            Party::Owner(owner) => Some(owner),
            Party::Network(network) => self.by_network.get(&network)?.1.last().map(|(_, owner)| *owner),
        }
    }

    fn of_network(&self, network: &AddressPrefix) -> usize {
        self.by_network.get(network).map_or(0, |(units, _)| *units)
    }

    fn set(&mut self, owner: &Owner, units: usize) {
        let before = self.held(owner);
        let changed = |sum: usize| sum.saturating_sub(before).saturating_add(units);
        self.all = changed(self.all);
        if units == 0 {
            self.by_owner.remove(owner);
        } else {
            self.by_owner.insert(*owner, units);
        }
        self.reorder(Party::Owner(*owner), owner.part(), before, units);
        let Some(network) = owner.network() else { return };
        let (sum, sources) = self.by_network.entry(network).or_default();
        let sum_before = core::mem::replace(sum, changed(*sum));
        let sum = *sum;
        sources.remove(&(before, *owner));
        if units > 0 {
            sources.insert((units, *owner));
        }
        if sum == 0 {
            self.by_network.remove(&network);
        }
        self.reorder(Party::Network(network), LARGE_PART, sum_before, sum);
    }

    fn reorder(&mut self, party: Party, part: usize, before: usize, units: usize) {
        self.order.remove(&(before.saturating_mul(part), party));
        if units > 0 {
            self.order.insert((units.saturating_mul(part), party));
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use proptest::prelude::*;

    use super::*;

    fn address(network: u8, host: u8) -> Owner {
        Owner::of_address([10, 0, network, host].into())
    }

    fn relay(number: u8) -> Owner {
        Owner::Relay(RelayId::from_bytes([number; 32]))
    }

    fn taken(shares: &mut Shares, owner: Owner) -> usize {
        (0..1000).take_while(|_| shares.take(&owner).is_ok()).count()
    }

    #[test]
    fn a_source_holds_a_sixteenth_and_a_network_and_a_listed_relay_a_quarter() {
        let mut shares = Shares::new(64);
        assert_eq!(taken(&mut shares, address(1, 1)), 4);
        assert_eq!((2..20).map(|host| taken(&mut shares, address(1, host))).sum::<usize>(), 12);
        assert_eq!(taken(&mut shares, relay(1)), 16);
        assert_eq!((2..=8).map(|network| taken(&mut shares, address(network, 1))).sum::<usize>(), 28);
        assert_eq!((shares.len(), shares.check(&address(9, 1))), (60, Ok(())));
        assert_eq!(taken(&mut shares, address(9, 1)), 4);
        assert_eq!(shares.check(&address(10, 1)), Err(AtCap::All));
        assert_eq!(shares.check(&relay(1)), Err(AtCap::Part), "a reached part precedes");
    }

    #[test]
    fn an_address_mapped_to_ipv6_is_the_same_source() {
        assert!(Owner::of_address("::ffff:10.0.1.1".parse().unwrap()) == address(1, 1));
    }

    #[test]
    fn the_fullest_owner_is_the_one_closest_to_its_part() {
        let mut shares = Shares::new(640);
        (0..20).for_each(|_| shares.take(&relay(1)).unwrap());
        (0..6).for_each(|_| shares.take(&address(1, 1)).unwrap());
        assert!(shares.fullest() == Some(address(1, 1)), "6 of 40, and 20 of 160");
        for host in 1..=9 {
            (0..4).for_each(|_| shares.take(&address(2, host)).unwrap());
        }
        shares.take(&address(2, 5)).unwrap();
        assert!(shares.fullest() == Some(address(2, 5)), "the network has 37 of 160");
        (0..100).for_each(|_| shares.take(&relay(2)).unwrap());
        assert!(shares.fullest() == Some(relay(2)));
    }

    #[test]
    fn closed_shares_give_nothing_out() {
        let mut shares = Shares::new(64);
        shares.take(&relay(1)).unwrap();
        shares.close();
        assert!(shares.take(&relay(2)).is_err());
        shares.release(&relay(1));
        assert!(shares.is_empty());
    }

    proptest! {
        #[test]
        fn the_parts_of_a_cap_add_up_whatever_is_taken_and_given_back(
            steps in proptest::collection::vec((any::<bool>(), 0_u8..3, 0_u8..6), 0..300)
        ) {
            let mut shares = Shares::new(40);
            let mut expected = HashMap::<Owner, usize>::new();
            for (takes, network, host) in steps {
                let owner = if network == 0 { relay(host) } else { address(network, host) };
                if takes && shares.take(&owner).is_ok() {
                    *expected.entry(owner).or_default() += 1;
                } else if !takes && expected.get(&owner).is_some_and(|units| *units > 0) {
                    shares.release(&owner);
                    *expected.get_mut(&owner).unwrap() -= 1;
                }
                let of_network = |network: AddressPrefix| {
                    expected.iter().filter(|(owner, _)| owner.network() == Some(network)).map(|(_, units)| *units).sum::<usize>()
                };
                prop_assert_eq!(shares.len(), expected.values().sum::<usize>());
                prop_assert!(expected.iter().all(|(owner, units)| shares.held(owner) == *units));
                prop_assert!(shares.len() <= 40 && expected.values().all(|units| *units <= 10));
                let fullness = |owner: &Owner| shares.held(owner) * owner.part();
                let most = expected.keys().map(|owner| {
                    fullness(owner).max(owner.network().map_or(0, |network| of_network(network) * LARGE_PART))
                });
                prop_assert_eq!(shares.order.last().map_or(0, |(most, _)| *most), most.max().unwrap_or(0));
                prop_assert_eq!(shares.by_owner.len(), expected.values().filter(|units| **units > 0).count());
                prop_assert_eq!(shares.fullest().is_some(), !shares.is_empty());
            }
        }
    }
}
