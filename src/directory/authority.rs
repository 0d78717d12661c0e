//! An authority: takes descriptors, has each relay dialled and proved, and signs the consensus.
//!
//! Owns what it knows of every relay, the last consensus and its key. Driven by descriptors, the outcomes of proofs and
//! wall time; the outside dials ([`AuthorityEvent::Prove`]), stores ([`AuthorityEvent::Remember`]) and serves
//! ([`AuthorityEvent::Publish`]). Governed by `proto/07-directory.md`, "Authorities". It keeps relays out that claim an
//! address which isn't theirs, and never lists a weight that a relay claimed.
//!
//! With several authorities, each will put its own list to the vote where this one now signs its own: `list` stays, and the
//! vote comes between it and [`Consensus::sign`].

mod relays;
mod volunteers;

use std::collections::VecDeque;

use core::time::Duration;

use rand::CryptoRng;

use super::{
    AuthorityId, Consensus, ConsensusError, Counted, DescriptorError, MAX_CONSENSUS_LEN, MAX_RELAYS, Parameters,
    PresenceError, Registration, SignedConsensus, SignedVolunteerList, UnverifiedConsensus, UnverifiedDescriptor,
    VolunteerList,
};
use crate::{
    base::{DialError, DialTarget, RelayId, WallTime},
    crypto::IdentityKey,
    exit::is_global,
};
use relays::{Entry, Relays};
use volunteers::Volunteers;

/// Proofs asked for at the same time at the most.
const MAX_PROOFS: usize = 32;
/// A proof whose outcome nobody told counts as failed after this long.
const PROOF_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a signed document that are kept free for what signing adds.
const SIGNATURE_ROOM: usize = 1024;

/// How an authority goes about it.
#[derive(Clone, Debug)]
pub struct AuthorityConfig {
    /// The first consensus waits for so many relays; 0 and 1: for the first.
    pub publish_when: usize,
    /// From one consensus to the next.
    pub interval: Duration,
    /// For how long a consensus is valid, at most a week.
    pub lifetime: Duration,
    /// From one proof of a relay to the next.
    pub prove_every: Duration,
    /// A relay known for so long is stable, and so is one known for longer than half of the relays.
    pub stable_after: Duration,
    /// Whether relays at private and loopback addresses are listed, and any number in one network.
    pub private_addresses: bool,
    /// The numbers that go into the consensus.
    pub parameters: Parameters,
}

impl Default for AuthorityConfig {
    /// A network on the Internet: a consensus each half hour, valid for a day.
    fn default() -> Self {
        Self {
            publish_when: 3,
            interval: Duration::from_secs(30 * 60),
            lifetime: Duration::from_secs(24 * 60 * 60),
            prove_every: Duration::from_secs(60 * 60),
            stable_after: Duration::from_secs(7 * 24 * 60 * 60),
            private_addresses: false,
            parameters: Parameters::default(),
        }
    }
}

impl AuthorityConfig {
    /// A network of `relays` relays on one machine: published as soon as all have registered, then each 20 s.
    #[must_use]
    pub fn testnet(relays: usize) -> Self {
        Self {
            publish_when: relays,
            interval: Duration::from_secs(20),
            prove_every: Duration::from_secs(20),
            stable_after: Duration::ZERO,
            private_addresses: true,
            parameters: Parameters::default().of_testnet(),
            ..Self::default()
        }
    }
}

/// Why a relay did not prove itself at the address it gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// No channel came about.
    #[error("dialling it: {0}")]
    Dial(#[from] DialError),
    /// Who answered there is someone else, or did not say who.
    #[error("who answers there did not prove to be that relay")]
    Identity,
}

/// What an authority asks of the outside, in this order.
#[derive(Debug)]
pub enum AuthorityEvent {
    /// Dial this relay at this one of its addresses, see whether it proves its identity, and tell
    /// [`Authority::handle_proof`].
    Prove(DialTarget),
    /// Serve this consensus in place of the last, and keep it for [`Authority::restore`].
    Publish(SignedConsensus),
    /// Serve this volunteer list in place of the last. It is not kept.
    PublishVolunteers(SignedVolunteerList),
    /// Keep this record for [`Authority::restore`], in place of the relay's last.
    Remember {
        /// The relay.
        relay: RelayId,
        /// An encoded `RelayRecord`.
        record: Vec<u8>,
    },
    /// Forget the relay's record.
    Forget(RelayId),
}

/// The authority's machine. Drain [`Self::poll_event`] after each call.
pub struct Authority {
    key: IdentityKey,
    config: AuthorityConfig,
    relays: Relays,
    volunteers: Volunteers,
    last: Option<Consensus>,
    next_consensus: Option<WallTime>,
    events: VecDeque<AuthorityEvent>,
}

impl Authority {
    /// An authority that signs with `key` and knows no relay yet.
    #[must_use]
    pub fn new(key: IdentityKey, config: AuthorityConfig) -> Self {
        let (relays, events) = (Relays::new(config.private_addresses), VecDeque::new());
        Self { key, config, relays, volunteers: Volunteers::default(), last: None, next_consensus: None, events }
    }

    /// The key its consensus is signed with.
    #[must_use]
    pub fn id(&self) -> AuthorityId {
        self.key.id().into()
    }

    /// Relays that would stand in a consensus made at `now`.
    #[must_use]
    pub fn listed(&self, now: WallTime) -> usize {
        self.relays.listed(now).count()
    }

    /// Takes up what was kept: the records of relays and the last consensus, which is published again if it is still
    /// valid. What can't be read, is stale or another authority's is passed over.
    pub fn restore<'a>(
        &mut self,
        now: WallTime,
        records: impl IntoIterator<Item = &'a [u8]>,
        consensus: Option<&[u8]>,
    ) {
        for entry in records.into_iter().filter_map(|record| Entry::decode(record, now)) {
            if self.relays.len() < MAX_RELAYS {
                self.relays.insert(entry);
            }
        }
        let own = [self.id()];
        let verified = consensus.and_then(|bytes| {
            let consensus = UnverifiedConsensus::decode(bytes).ok()?.verify_signatures(&own).ok()?;
            Some((consensus, bytes))
        });
        if let Some((consensus, bytes)) = verified {
            self.next_consensus = Some(consensus.valid_after().after(self.config.interval));
            if !consensus.is_expired(now) {
                self.events.push_back(AuthorityEvent::Publish(SignedConsensus::from_verified(bytes)));
            }
            self.last = Some(consensus);
        }
        self.handle_timeout(now);
    }

    /// Takes a published descriptor (an encoded `SignedDescriptor`). The relay is listed once it has proved itself. The one
    /// known already changes nothing and is no error.
    ///
    /// # Errors
    /// When the descriptor is refused; the text may be shown to the sender.
    pub fn handle_descriptor(&mut self, now: WallTime, bytes: &[u8]) -> Result<RelayId, DescriptorError> {
        let descriptor = UnverifiedDescriptor::decode(bytes)?.verify(now)?;
        let identity = descriptor.profile.identity;
        let public = descriptor.profile.addresses.iter().all(|address| is_global(address.ip()));
        if !public && !self.config.private_addresses {
            return Err(DescriptorError::PrivateAddress);
        }
        match self.relays.entry(&identity) {
            Some(known) if known.descriptor == descriptor => return Ok(identity),
            Some(known) if known.descriptor.published >= descriptor.published => return Err(DescriptorError::Older),
            Some(known) => known.replace(descriptor, bytes, now),
            None => self.add(Entry::new(descriptor, bytes, now))?,
        }
        self.remember(&identity);
        self.handle_timeout(now);
        Ok(identity)
    }

    /// Takes the outcome of one dial that was asked for. The relay has proved itself when it did so at each of its addresses;
    /// for other addresses than its descriptor names by now it doesn't count.
    pub fn handle_proof(&mut self, now: WallTime, target: &DialTarget, outcome: Result<(), ProofError>) {
        let Some(entry) = self.relays.entry(&target.relay) else { return };
        if let Err(error) = &outcome {
            tracing::info!(relay = %target.relay, %error, "a relay did not prove itself");
        }
        entry.dialled(now, target, outcome, self.config.prove_every);
        self.remember(&target.relay);
        self.handle_timeout(now);
    }

    /// Takes a volunteer's registration (an encoded `SignedVolunteer`). It is listed once gateways that fall to it have
    /// reported it; the same bytes again tell it whether that is so.
    ///
    /// # Errors
    /// When the registration is refused; the text may be shown to the sender.
    pub fn handle_volunteer(
        &mut self,
        now: WallTime,
        bytes: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<Registration, DescriptorError> {
        self.volunteers.register(now, bytes, self.last.as_ref(), rng)
    }

    /// Takes a gateway's report of the volunteers that have a channel to it (an encoded `SignedPresence`), and tells for
    /// whom of them it counts.
    ///
    /// # Errors
    /// When the report is refused; the text may be shown to the sender.
    pub fn handle_presence(&mut self, now: WallTime, bytes: &[u8]) -> Result<Counted, PresenceError> {
        self.volunteers.report(now, bytes, self.last.as_ref())
    }

    /// Does what is due: drops stale relays, asks for proofs, makes a consensus and a volunteer list.
    pub fn handle_timeout(&mut self, now: WallTime) {
        for relay in self.relays.remove_stale(now) {
            tracing::info!(%relay, "a relay's descriptor is too old; it is dropped");
            self.events.push_back(AuthorityEvent::Forget(relay));
        }
        self.relays.time_out_proofs(now, PROOF_TIMEOUT, self.config.prove_every);
        for target in self.relays.wanted_proofs(now, MAX_PROOFS) {
            self.events.push_back(AuthorityEvent::Prove(target));
        }
        if self.is_consensus_due(now) {
            self.publish(now);
        }
        self.publish_volunteers(now);
    }

    /// When [`Self::handle_timeout`] has something to do next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<WallTime> {
        let proof = self.relays.next_deadline(PROOF_TIMEOUT, MAX_PROOFS);
        [self.next_consensus, proof, self.volunteers.next_list()].into_iter().flatten().min()
    }

    /// What the outside is to do next.
    pub fn poll_event(&mut self) -> Option<AuthorityEvent> {
        self.events.pop_front()
    }

    fn is_consensus_due(&self, now: WallTime) -> bool {
        match self.next_consensus {
            Some(next) => now >= next,
            None => self.listed(now) >= self.config.publish_when.max(1),
        }
    }

    /// Signs a new consensus. One that would list nobody isn't made: the last serves better until it expires.
    fn publish(&mut self, now: WallTime) {
        self.next_consensus = Some(now.after(self.config.interval));
        let mut list = self.relays.list(now, self.config.stable_after, MAX_RELAYS);
        if list.is_empty() {
            tracing::warn!("no relay has proved itself; no consensus is made");
            return;
        }
        // Strictly later than the last, also when two fall in one second or the clock was set back.
        let after_last = self.last.as_ref().map(|last| last.valid_after().after(Duration::from_secs(1)));
        let valid_after = after_last.map_or(now, |least| least.max(now));
        let fresh_until = valid_after.after(self.config.interval);
        let valid_until = valid_after.after(self.config.lifetime).max(fresh_until);
        loop {
            let relays = list.len();
            match Consensus::new((valid_after, fresh_until, valid_until), &self.config.parameters, list) {
                Ok((consensus, encoded)) if encoded.len() <= MAX_CONSENSUS_LEN.saturating_sub(SIGNATURE_ROOM) => {
                    tracing::info!(relays, "a new consensus");
                    self.last = Some(consensus);
                    self.events.push_back(AuthorityEvent::Publish(Consensus::sign(encoded, [&self.key])));
                    return;
                }
                // Too long: better without the youngest than none.
                Ok(_) | Err(ConsensusError::Malformed(_)) if relays > 1 => {
                    let most = relays.saturating_sub(relays.div_ceil(16));
                    tracing::warn!(relays, most, "the consensus is too long; the youngest relays are left out");
                    list = self.relays.list(now, self.config.stable_after, most);
                }
                Ok(_) => return tracing::error!("no consensus can be made: one relay is too long"),
                Err(error) => return tracing::error!(%error, "no consensus can be made"),
            }
        }
    }

    /// Signs a new volunteer list, if it is time for one. It may be empty; without a consensus there is none.
    fn publish_volunteers(&mut self, now: WallTime) {
        let Some(consensus) = &self.last else { return };
        let names = |relay: &RelayId, volunteer: &RelayId| self.relays.names(relay, volunteer);
        if let Some(encoded) = self.volunteers.list(now, consensus, names) {
            let signed = VolunteerList::sign(encoded, [&self.key]);
            self.events.push_back(AuthorityEvent::PublishVolunteers(signed));
        }
    }

    /// Takes in a relay that is new. Identities cost nothing, so those that have not proved themselves make room.
    fn add(&mut self, entry: Entry) -> Result<(), DescriptorError> {
        let mut forgotten = self.relays.make_room(&entry);
        if self.relays.len() >= MAX_RELAYS {
            forgotten.push(self.relays.evict_unproved().ok_or(DescriptorError::Full)?);
        }
        self.events.extend(forgotten.into_iter().map(AuthorityEvent::Forget));
        self.relays.insert(entry);
        Ok(())
    }

    fn remember(&mut self, relay: &RelayId) {
        if let Some(entry) = self.relays.entry(relay).filter(|entry| entry.is_kept()) {
            self.events.push_back(AuthorityEvent::Remember { relay: *relay, record: entry.encode() });
        }
    }
}

#[cfg(test)]
mod tests;
