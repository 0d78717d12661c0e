//! Choosing by weight (`proto/08-paths.md`, "Weights").

use rand::{CryptoRng, RngExt};

use crate::directory::{Consensus, ConsensusRelay, Flags};

/// What part of an exit's weight is left for positions other than the exit's.
#[derive(Clone, Copy)]
pub(super) struct ExitShare {
    numerator: u64,
    denominator: u64,
}

impl ExitShare {
    /// Exits are spared for what only they can do: with E of the weight T in exits, (3E − T) / 3E of theirs is left, and none
    /// when they have less than a third.
    pub(super) fn of(consensus: &Consensus) -> Self {
        let weight = |relays: &mut dyn Iterator<Item = &ConsensusRelay>| {
            relays.map(|relay| u64::from(relay.weight)).fold(0, u64::saturating_add)
        };
        let total = weight(&mut consensus.relays().iter());
        let exits = weight(&mut consensus.relays().iter().filter(|relay| relay.flags.contains(Flags::EXIT)));
        let thrice = exits.saturating_mul(3);
        Self { numerator: thrice.saturating_sub(total), denominator: thrice.max(1) }
    }

    /// The weight of `relay` in a position that needs no exit.
    pub(super) fn weight(self, relay: &ConsensusRelay) -> u64 {
        let weight = u64::from(relay.weight);
        if relay.flags.contains(Flags::EXIT) {
            weight.saturating_mul(self.numerator).checked_div(self.denominator).unwrap_or_default()
        } else {
            weight
        }
    }
}

/// One of `relays`, each as likely as its `weight` says; if all weights are zero, each as likely as another.
pub(super) fn pick<'a, R: CryptoRng + ?Sized>(
    relays: &[&'a ConsensusRelay],
    weight: impl Fn(&ConsensusRelay) -> u64,
    rng: &mut R,
) -> Option<&'a ConsensusRelay> {
    let total = relays.iter().map(|relay| weight(relay)).fold(0, u64::saturating_add);
    if total == 0 {
        let last = relays.len().checked_sub(1)?;
        return relays.get(rng.random_range(0..=last)).copied();
    }
    let mut left = rng.random_range(0..total);
    for relay in relays {
        match left.checked_sub(weight(relay)) {
            Some(rest) => left = rest,
            None => return Some(relay),
        }
    }
    relays.last().copied()
}
