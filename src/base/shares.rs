//! Shares of a cap: units counted by owner, so that no owner can hold all units.

use core::{
    cmp::{Ordering, Reverse},
    fmt,
    net::IpAddr,
};
use std::collections::{BTreeSet, HashMap};

use super::{AddressPrefix, Counter as _, RelayId};

/// Divisor of a cap for the share of one source: a sixteenth.
const SOURCE_DIVISOR: usize = 16;
/// Divisor of a cap for the share of one network or one listed relay: a quarter.
const LARGE_DIVISOR: usize = 4;

/// The owner of units of a cap, or of a rate. Prints redacted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A source within its network.
    Source(AddressPrefix, AddressPrefix),
    /// A listed relay, which carries the circuits of many clients.
    Relay(RelayId),
}

impl Owner {
    /// The owner of units that are held by the node at `address`: the source and network of the address.
    #[must_use]
    pub fn of_address(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self::Source(AddressPrefix::source(address), AddressPrefix::network(address))
    }

    /// The network of a source; `None` for a listed relay.
    #[must_use]
    pub const fn network(&self) -> Option<AddressPrefix> {
        match self {
            Self::Source(_, network) => Some(*network),
            Self::Relay(_) => None,
        }
    }

    /// The block of a source; `None` for a listed relay.
    fn block(&self) -> Option<AddressPrefix> {
        self.network().map(|network| network.of_block())
    }

    /// All sources of the network of a source as one owner; a listed relay itself.
    #[must_use]
    pub const fn of_network(self) -> Self {
        match self {
            Self::Source(_, network) => Self::Source(network, network),
            relay @ Self::Relay(_) => relay,
        }
    }

    const fn divisor(&self) -> usize {
        match self {
            Self::Source(..) => SOURCE_DIVISOR,
            Self::Relay(_) => LARGE_DIVISOR,
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
    /// The owner or its network holds its whole share.
    Share,
    /// All units are held.
    All,
}

/// A holder of units: an owner, or all sources of a network together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Owner(Owner),
    Network(AddressPrefix),
}

/// Units of a cap, by owner. A source holds at most a sixteenth, a network or a listed relay at most a quarter.
///
/// A block is all customers of a provider, so it is refused nothing while there is room. At the cap, a block with more
/// than half of the units loses the next one, and a block that would have more than half takes one of its own.
///
/// Memory: a few entries for each owner with units.
pub struct Shares {
    cap: usize,
    total: usize,
    by_owner: HashMap<Owner, Units>,
    /// For each network: the sum of its sources' units, and the sources in the order of their units.
    by_network: HashMap<AddressPrefix, (Units, BTreeSet<(Units, Owner)>)>,
    /// All holders, each with its units times its divisor. The last holder is the closest to its share.
    order: BTreeSet<(Units, Holder)>,
    /// For each block: the units of its sources, and those of the `order` that are in it.
    by_block: HashMap<AddressPrefix, (usize, BTreeSet<(Units, Holder)>)>,
    /// The block with more than half of the cap.
    crowded: Option<AddressPrefix>,
    /// The number of changes so far.
    changes: u64,
}

/// Units, in the order of their number. Of equal numbers, the one that changed last comes first, so that no holder is
/// preferred for its address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Units {
    count: usize,
    /// The value of [`Shares::changes`] at the last change.
    changed: Reverse<u64>,
}

impl Units {
    const fn times(self, divisor: usize) -> Self {
        Self { count: self.count.saturating_mul(divisor), ..self }
    }
}

impl Shares {
    /// `cap` units without an owner.
    #[must_use]
    pub fn new(cap: usize) -> Self {
        Self {
            cap,
            total: 0,
            by_owner: HashMap::new(),
            by_network: HashMap::new(),
            order: BTreeSet::new(),
            by_block: HashMap::new(),
            crowded: None,
            changes: 0,
        }
    }

    /// The units that have an owner.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.total
    }

    /// Whether no unit has an owner.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Sets the cap to zero: every further unit is refused.
    pub const fn close(&mut self) {
        self.cap = 0;
    }

    /// Whether `owner` may take one more unit.
    ///
    /// # Errors
    /// [`AtCap::Share`] if the owner or its network holds its whole share, otherwise [`AtCap::All`] if no unit is left.
    pub fn check(&self, owner: &Owner) -> Result<(), AtCap> {
        let of_network = owner.network().map_or(0, |network| self.of_network(&network));
        if self.held(owner) >= self.cap.div_ceil(owner.divisor()) || of_network >= self.cap.div_ceil(LARGE_DIVISOR) {
            return Err(AtCap::Share);
        }
        if self.total < self.cap { Ok(()) } else { Err(AtCap::All) }
    }

    /// Takes one unit for `owner`.
    ///
    /// # Errors
    /// As [`check`](Self::check); then nothing is taken.
    pub fn take(&mut self, owner: &Owner) -> Result<(), AtCap> {
        self.check(owner)?;
        self.add(owner, 1);
        Ok(())
    }

    /// Releases a unit of `owner`.
    pub fn release(&mut self, owner: &Owner) {
        self.subtract(owner, 1);
    }

    /// Adds units of `owner`, whatever its share and the cap.
    pub fn add(&mut self, owner: &Owner, units: usize) {
        self.set(owner, self.held(owner).saturating_add(units));
    }

    /// Releases several units of `owner`.
    pub fn subtract(&mut self, owner: &Owner, units: usize) {
        self.set(owner, self.held(owner).saturating_sub(units));
    }

    /// The units of an owner.
    #[must_use]
    pub fn held(&self, owner: &Owner) -> usize {
        self.by_owner.get(owner).map_or(0, |units| units.count)
    }

    /// The units of a listed relay, or of all sources of the network of a source.
    #[must_use]
    pub fn held_in_network(&self, owner: &Owner) -> usize {
        owner.network().map_or_else(|| self.held(owner), |network| self.of_network(&network))
    }

    /// The owner closest to its share, of a block with more than half of the cap if there is one. If a network is closer to
    /// its share than any owner: the source of that network with the most units. Of several, the one whose units have not
    /// changed for longest.
    #[must_use]
    pub fn fullest(&self) -> Option<Owner> {
        self.fullest_of(self.crowded)
    }

    /// The fullest owner of a block, or of all.
    fn fullest_of(&self, block: Option<AddressPrefix>) -> Option<Owner> {
        let order = match block {
            Some(block) => &self.by_block.get(&block)?.1,
            None => &self.order,
        };
        match order.last()?.1 {
            Holder::Owner(owner) => Some(owner),
            Holder::Network(network) => self.by_network.get(&network)?.1.last().map(|(_, owner)| *owner),
        }
    }

    /// Whether a block has more than half of the cap with `more` units. Shares without a cap have no such block.
    fn is_crowded(&self, block: &AddressPrefix, more: usize) -> bool {
        let units = self.by_block.get(block).map_or(0, |(units, _)| *units).saturating_add(more);
        self.cap > 0 && units > self.cap / 2
    }

    /// The owner that makes room for one more unit of `owner`. At a share: `owner`, or the source of its network with the
    /// most units. At the cap: the [`fullest`](Self::fullest), of the block of `owner` if the block would have more than
    /// half. `None` below both.
    #[must_use]
    pub fn crowding(&self, owner: &Owner) -> Option<Owner> {
        match self.check(owner).err()? {
            AtCap::Share if self.held(owner) >= self.cap.div_ceil(owner.divisor()) => Some(*owner),
            AtCap::Share => self.by_network.get(&owner.network()?)?.1.last().map(|(_, owner)| *owner),
            AtCap::All => self.fullest_of(owner.block().filter(|block| self.is_crowded(block, 1)).or(self.crowded)),
        }
    }

    /// A measure that orders owners: the fraction of the share that the owner or its network holds, whichever is
    /// larger, and then the units of the owner. [`fullest`](Self::fullest) has the highest of its block, or of all.
    #[must_use]
    pub fn fullness(&self, owner: &Owner) -> (usize, usize) {
        let held = self.held(owner);
        let of_network = owner.network().map_or(0, |network| self.of_network(&network));
        (held.saturating_mul(owner.divisor()).max(of_network.saturating_mul(LARGE_DIVISOR)), held)
    }

    /// The highest [`fullness`](Self::fullness) of an owner.
    #[must_use]
    pub fn highest_fullness(&self) -> usize {
        self.order.last().map_or(0, |(units, _)| units.count)
    }

    /// Compares the part of its share that `owner` would have with one more unit to the part that `other` has. Within one
    /// network, compares the numbers of units. An owner whose block has more than half of the cap is above all owners of
    /// other blocks.
    ///
    /// If an owner releases a unit only for owners that remain below it, two owners can't take one unit from each other
    /// in turn.
    #[must_use]
    pub fn compare_with_one_more(&self, owner: &Owner, other: &Owner) -> Ordering {
        let held = self.held(owner).saturating_add(1);
        let network = owner.network();
        if network.is_some() && network == other.network() {
            return held.cmp(&self.held(other));
        }
        let (block, other_block) = (owner.block(), other.block());
        if block != other_block {
            let is_crowded =
                |block: Option<AddressPrefix>, more| block.is_some_and(|block| self.is_crowded(&block, more));
            match (is_crowded(block, 1), is_crowded(other_block, 0)) {
                (false, true) => return Ordering::Less,
                (true, false) => return Ordering::Greater,
                _ => {}
            }
        }
        let of_network = network.map_or(0, |network| self.of_network(&network).saturating_add(1));
        let fullness = held.saturating_mul(owner.divisor()).max(of_network.saturating_mul(LARGE_DIVISOR));
        fullness.cmp(&self.fullness(other).0)
    }

    fn of_network(&self, network: &AddressPrefix) -> usize {
        self.by_network.get(network).map_or(0, |(units, _)| units.count)
    }

    fn set(&mut self, owner: &Owner, count: usize) {
        self.changes.increment();
        let changed = Reverse(self.changes);
        let before = self.by_owner.get(owner).copied().unwrap_or_default();
        let units = Units { count, changed };
        let adjusted = |sum: usize| sum.saturating_sub(before.count).saturating_add(count);
        self.total = adjusted(self.total);
        if count == 0 {
            self.by_owner.remove(owner);
        } else {
            self.by_owner.insert(*owner, units);
        }
        let block = owner.block();
        if let Some(block) = block {
            let of_block = self.by_block.entry(block).or_default();
            of_block.0 = adjusted(of_block.0);
        }
        self.reorder(Holder::Owner(*owner), block, owner.divisor(), before, units);
        let (Some(network), Some(block)) = (owner.network(), block) else { return };
        let (sum, sources) = self.by_network.entry(network).or_default();
        let sum_before = *sum;
        *sum = Units { count: adjusted(sum.count), changed };
        let sum = *sum;
        sources.remove(&(before, *owner));
        if count > 0 {
            sources.insert((units, *owner));
        }
        if sum.count == 0 {
            self.by_network.remove(&network);
        }
        self.reorder(Holder::Network(network), Some(block), LARGE_DIVISOR, sum_before, sum);
        if self.is_crowded(&block, 0) {
            self.crowded = Some(block);
        } else if self.crowded == Some(block) {
            self.crowded = None;
        }
        if self.by_block.get(&block).is_some_and(|(units, _)| *units == 0) {
            self.by_block.remove(&block);
        }
    }

    fn reorder(&mut self, holder: Holder, block: Option<AddressPrefix>, divisor: usize, before: Units, units: Units) {
        let of_block = block.and_then(|block| self.by_block.get_mut(&block)).map(|(_, order)| order);
        for order in [Some(&mut self.order), of_block].into_iter().flatten() {
            order.remove(&(before.times(divisor), holder));
            if units.count > 0 {
                order.insert((units.times(divisor), holder));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use proptest::prelude::*;

    use super::*;

    fn source(network: u8, host: u8) -> Owner {
        Owner::of_address([10, 0, network, host].into())
    }

    fn relay(number: u8) -> Owner {
        Owner::Relay(RelayId::from_bytes([number; 32]))
    }

    fn units_taken(shares: &mut Shares, owner: Owner) -> usize {
        (0..1000).take_while(|_| shares.take(&owner).is_ok()).count()
    }

    #[test]
    fn a_source_holds_a_sixteenth_and_a_network_and_a_listed_relay_a_quarter() {
        let mut shares = Shares::new(64);
        assert_eq!(units_taken(&mut shares, source(1, 1)), 4);
        assert_eq!((2..20).map(|host| units_taken(&mut shares, source(1, host))).sum::<usize>(), 12);
        assert_eq!(units_taken(&mut shares, relay(1)), 16);
        assert_eq!((2..=8).map(|network| units_taken(&mut shares, source(network, 1))).sum::<usize>(), 28);
        assert_eq!((shares.len(), shares.check(&source(9, 1))), (60, Ok(())));
        assert_eq!(units_taken(&mut shares, source(9, 1)), 4);
        assert_eq!(shares.check(&source(10, 1)), Err(AtCap::All));
        assert_eq!(shares.check(&relay(1)), Err(AtCap::Share), "a reached share precedes");
    }

    #[test]
    fn an_address_mapped_to_ipv6_is_the_same_source() {
        assert!(Owner::of_address("::ffff:10.0.1.1".parse().unwrap()) == source(1, 1));
    }

    #[test]
    fn the_fullest_owner_is_the_one_closest_to_its_share() {
        let mut shares = Shares::new(640);
        (0..20).for_each(|_| shares.take(&relay(1)).unwrap());
        (0..6).for_each(|_| shares.take(&source(1, 1)).unwrap());
        assert!(shares.fullest() == Some(source(1, 1)), "6 of 40, and 20 of 160");
        for host in 1..=9 {
            (0..4).for_each(|_| shares.take(&source(2, host)).unwrap());
        }
        shares.take(&source(2, 5)).unwrap();
        assert!(shares.fullest() == Some(source(2, 5)), "the network has 37 of 160");
        (0..100).for_each(|_| shares.take(&relay(2)).unwrap());
        assert!(shares.fullest() == Some(relay(2)));
    }

    #[test]
    fn the_owner_or_network_at_its_share_makes_room_or_at_the_cap_the_fullest_owner() {
        let mut shares = Shares::new(64);
        assert!(shares.crowding(&source(1, 1)).is_none());
        (0..4).for_each(|_| shares.take(&source(1, 1)).unwrap());
        assert!(shares.crowding(&source(1, 1)) == Some(source(1, 1)));
        for host in 2..=7 {
            (0..2).for_each(|_| shares.take(&source(1, host)).unwrap());
        }
        assert!(shares.crowding(&source(1, 9)) == Some(source(1, 1)), "the network has a quarter");
        assert!(shares.crowding(&relay(1)).is_none());
        (1..=3).for_each(|number| shares.add(&relay(number), 16));
        assert!(shares.crowding(&source(2, 1)) == shares.fullest() && shares.fullest().is_some());
    }

    #[test]
    fn at_the_cap_a_block_with_more_than_half_makes_room_and_takes_none_of_others() {
        let address = |block: u8, network: u8| Owner::of_address([10, block, network, 1].into());
        let mut shares = Shares::new(64);
        // As many networks as it likes, while there is room.
        (0..62).for_each(|network| shares.take(&address(1, network)).unwrap());
        (0..2).for_each(|_| shares.take(&address(2, 1)).unwrap());
        let (other, of_block) = (address(3, 1), address(1, 100));
        assert!(shares.crowding(&other) == Some(address(1, 0)), "although the source in the second block has more");
        assert!(shares.compare_with_one_more(&other, &address(1, 0)).is_lt(), "although each has one");
        assert!(shares.crowding(&of_block) == Some(address(1, 0)));
        assert!(shares.compare_with_one_more(&of_block, &address(1, 0)).is_eq());
        assert!(shares.compare_with_one_more(&of_block, &address(2, 1)).is_gt());
        for number in 0..30 {
            shares.release(&shares.fullest().unwrap());
            shares.take(&address(3, number)).unwrap();
        }
        assert!(shares.crowding(&other) == Some(address(2, 1)), "both blocks have half or less");
        assert!(shares.crowding(&of_block) == shares.fullest_of(of_block.block()), "it would have more than half");
        assert!(shares.crowding(&relay(1)) == Some(address(2, 1)));
    }

    #[test]
    fn closed_shares_refuse_further_units() {
        let mut shares = Shares::new(64);
        shares.take(&relay(1)).unwrap();
        shares.close();
        assert!(shares.take(&relay(2)).is_err());
        shares.release(&relay(1));
        assert!(shares.is_empty());
    }

    proptest! {
        #[test]
        fn the_shares_of_a_cap_add_up_after_any_order_of_calls(
            steps in proptest::collection::vec((any::<bool>(), 0_u8..6, 0_u8..6), 0..300)
        ) {
            let mut shares = Shares::new(40);
            let mut expected = HashMap::<Owner, usize>::new();
            for (takes, network, host) in steps {
                let owner = if network == 0 { relay(host) } else { source(network, host) };
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
                let fullness = |owner: &Owner| shares.held(owner) * owner.divisor();
                let fullness_of_all = expected.keys().map(|owner| {
                    fullness(owner).max(owner.network().map_or(0, |network| of_network(network) * LARGE_DIVISOR))
                });
                // All sources are in one block.
                let of_block: usize =
                    expected.iter().filter(|(owner, _)| owner.network().is_some()).map(|(_, units)| *units).sum();
                let fullness_of_all = expected.keys().zip(fullness_of_all);
                let highest_of_all = fullness_of_all.clone().map(|(_, fullness)| fullness).max();
                prop_assert_eq!(shares.highest_fullness(), highest_of_all.unwrap_or(0));
                let among = fullness_of_all.filter(|(owner, _)| of_block <= 20 || owner.network().is_some());
                let highest = among.map(|(_, fullness)| fullness).max().unwrap_or(0);
                prop_assert!(shares.fullest().is_none_or(|owner| shares.fullness(&owner).0 == highest));
                prop_assert_eq!(shares.by_block.values().map(|(units, _)| *units).sum::<usize>(), of_block);
                prop_assert_eq!(shares.by_owner.len(), expected.values().filter(|units| **units > 0).count());
                prop_assert_eq!(shares.fullest().is_some(), !shares.is_empty());
            }
        }
    }
}
