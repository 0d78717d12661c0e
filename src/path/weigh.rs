//! Weighted choice of relays (`proto/08-paths.md` §3).

use rand::{CryptoRng, RngExt};

use super::hop::PathRelay;
use crate::directory::{Consensus, ConsensusRelay, Flags};

/// The fraction of an exit's weight that counts for positions other than the last.
#[derive(Clone, Copy)]
pub(super) struct ExitShare {
    numerator: u64,
    denominator: u64,
}

impl ExitShare {
    /// Exits are reserved for the exit position. With the weight E of all exits and the weight T of all relays, the
    /// fraction is (3E − T) / 3E, or 0 if the exits have less than a third of the weight.
    pub(super) fn of(consensus: &Consensus) -> Self {
        let weight = |relays: &mut dyn Iterator<Item = &ConsensusRelay>| {
            relays.map(|relay| u64::from(relay.weight)).fold(0, u64::saturating_add)
        };
        let total = weight(&mut consensus.relays().iter());
        let exits = weight(&mut consensus.relays().iter().filter(|relay| relay.flags.contains(Flags::EXIT)));
        let triple = exits.saturating_mul(3);
        Self { numerator: triple.saturating_sub(total), denominator: triple.max(1) }
    }

    /// The weight of `hop` in a position other than the last.
    pub(super) fn weight(self, hop: &PathRelay<'_>) -> u64 {
        match hop {
            PathRelay::Listed(relay) if relay.flags.contains(Flags::EXIT) => {
                hop.weight().saturating_mul(self.numerator).checked_div(self.denominator).unwrap_or_default()
            }
            PathRelay::Listed(_) | PathRelay::Volunteer(_) => hop.weight(),
        }
    }
}

/// One of `hops`, with a probability proportional to `weight`; uniform if all weights are zero.
pub(super) fn pick_by_weight<'a, R: CryptoRng + ?Sized>(
    hops: &[PathRelay<'a>],
    weight: impl Fn(&PathRelay<'a>) -> u64,
    rng: &mut R,
) -> Option<PathRelay<'a>> {
    let total = hops.iter().map(&weight).fold(0, u64::saturating_add);
    if total == 0 {
        return pick_uniformly(hops, rng);
    }
    let mut remaining = rng.random_range(0..total);
    for hop in hops {
        match remaining.checked_sub(weight(hop)) {
            Some(difference) => remaining = difference,
            None => return Some(*hop),
        }
    }
    hops.last().copied()
}

/// One of `hops`, uniformly.
pub(super) fn pick_uniformly<'a, R: CryptoRng + ?Sized>(hops: &[PathRelay<'a>], rng: &mut R) -> Option<PathRelay<'a>> {
    let last = hops.len().checked_sub(1)?;
    hops.get(rng.random_range(0..=last)).copied()
}
