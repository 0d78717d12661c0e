//! The ages of former relays, which were listed or could have been, and which the authority has dropped since.
//!
//! A relay that returns within [`MAX_ABSENCE`] keeps its age. Otherwise, attackers that take the places of a relay would
//! reset its age, on which its flags and its place in the consensus depend. Its absence adds no age, whether the
//! authority holds the relay in that time or not.

use std::collections::BTreeMap;

use core::{net::SocketAddr, time::Duration};

use prost::Message as _;

use super::{
    crowding::{PROVED_CAPS, RelaysByPrefix, prefixes},
    instant,
};
use crate::{
    base::{Deadlines, RelayId, WallTime},
    directory::{
        profile::{decode_address, decode_identity, encode_address},
        schema,
    },
};

/// Time for which the age of a former relay is kept.
pub(super) const MAX_ABSENCE: Duration = Duration::from_secs(60 * 24 * 60 * 60);
/// Cap on former relays whose ages are kept; each takes about 500 bytes of memory, and 100 bytes on disk.
pub(super) const MAX_FORMER_RELAYS: usize = 16_384;

/// A relay that the authority has dropped.
#[derive(Clone, Debug)]
pub(super) struct FormerRelay {
    /// The time of its first proof.
    pub(super) known_since: WallTime,
    /// The time from which on the relay gains no age: its last successful proof if it was absent when the authority
    /// dropped it, else the drop.
    pub(super) absent_since: WallTime,
    /// The addresses of its last proof, because the addresses of a later descriptor are only claimed.
    pub(super) addresses: Vec<SocketAddr>,
}

impl FormerRelay {
    /// Encodes the record of the former relay for storage.
    pub(super) fn encode(&self, relay: &RelayId) -> Vec<u8> {
        let former = schema::FormerRelay {
            identity: relay.as_bytes().to_vec(),
            addresses: self.addresses.iter().map(encode_address).collect(),
            absent_since: self.absent_since.as_unix(),
        };
        let known_since = self.known_since.as_unix();
        schema::RelayRecord { known_since, former: Some(former), ..Default::default() }.encode_to_vec()
    }

    /// Decodes a record; `None` if the record is not that of a former relay.
    pub(super) fn decode(record: &[u8], now: WallTime) -> Option<(RelayId, Self)> {
        let record = schema::RelayRecord::decode(record).ok()?;
        let former = record.former?;
        let relay = decode_identity(&former.identity)?;
        // A descriptor has at most one address of each family.
        let addresses: Option<Vec<_>> = former.addresses.iter().take(2).map(decode_address).collect();
        let time = |seconds| WallTime::from_unix(seconds).min(now);
        let (known_since, absent_since) = (time(record.known_since), time(former.absent_since));
        Some((relay, Self { known_since, absent_since, addresses: addresses? }))
    }
}

/// The time since which a relay counts as known when it is proved again at `now`. The time of its absence doesn't count.
/// `None` after [`MAX_ABSENCE`].
pub(super) fn age_after_absence(known_since: WallTime, absent_since: WallTime, now: WallTime) -> Option<WallTime> {
    let absence = now.since(absent_since);
    (absence < MAX_ABSENCE).then(|| known_since.after(absence).min(now))
}

/// The ages of former relays, by identity.
///
/// The caps for each address, network and block are those of proved relays. At such a cap, the age of the prefix's
/// youngest relay is dropped. At the cap in total, it is the youngest relay of the block with the most former relays. So
/// an attacker drops the age of a relay only by as many older relays in the same prefix, or by relays in many blocks.
pub(super) struct Ages {
    former: BTreeMap<RelayId, FormerRelay>,
    expiry: Deadlines<RelayId>,
    by_prefix: RelaysByPrefix,
    /// Whether only the cap in total holds, as in a testnet.
    uncapped: bool,
}

impl Ages {
    pub(super) fn new(uncapped: bool) -> Self {
        Self { former: BTreeMap::new(), expiry: Deadlines::default(), by_prefix: RelaysByPrefix::default(), uncapped }
    }

    /// The number of former relays.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.former.len()
    }

    /// Whether the age of `relay` is kept.
    pub(super) fn contains(&self, relay: &RelayId) -> bool {
        self.former.contains_key(relay)
    }

    /// Adds the age of a relay that has been dropped. Returns the relays whose ages are dropped at a cap, possibly
    /// `relay` itself.
    pub(super) fn add(&mut self, relay: RelayId, former: FormerRelay) -> Vec<RelayId> {
        self.remove(&relay);
        let own: Vec<_> = prefixes(&PROVED_CAPS, &former.addresses).collect();
        self.by_prefix.insert(relay, former.known_since, &former.addresses);
        self.expiry.set(relay, instant(former.absent_since.after(MAX_ABSENCE)));
        self.former.insert(relay, former);
        let mut dropped = Vec::new();
        let uncapped = self.uncapped;
        for (prefix, cap) in own.into_iter().filter(|_| !uncapped) {
            while self.by_prefix.count(&prefix) > cap && self.drop_age(self.by_prefix.youngest(&prefix), &mut dropped) {
            }
        }
        while self.former.len() > MAX_FORMER_RELAYS
            && self.drop_age(self.by_prefix.youngest_of_most_crowded(0, |_| true), &mut dropped)
        {}
        dropped
    }

    /// Removes the age of a relay that is held again. Returns the time since which the relay counts as known; `None` if
    /// its age isn't kept, or no longer. The time of the absence doesn't count, so that a relay gains no age by it.
    pub(super) fn take(&mut self, relay: &RelayId, now: WallTime) -> Option<WallTime> {
        let former = self.remove(relay)?;
        age_after_absence(former.known_since, former.absent_since, now)
    }

    /// Removes the ages of relays that have been away for [`MAX_ABSENCE`], and returns these relays.
    pub(super) fn remove_expired(&mut self, now: WallTime) -> Vec<RelayId> {
        let mut expired = Vec::new();
        while let Some(relay) = self.expiry.pop_due(instant(now)) {
            self.remove(&relay);
            expired.push(relay);
        }
        expired
    }

    /// Drops the age of a former relay, and adds the relay to `dropped`. Returns `false` if there is none.
    fn drop_age(&mut self, relay: Option<RelayId>, dropped: &mut Vec<RelayId>) -> bool {
        let found = relay.filter(|relay| self.remove(relay).is_some());
        dropped.extend(found);
        found.is_some()
    }

    fn remove(&mut self, relay: &RelayId) -> Option<FormerRelay> {
        let former = self.former.remove(relay)?;
        self.expiry.remove(*relay);
        self.by_prefix.remove(*relay, former.known_since, &former.addresses);
        Some(former)
    }
}
