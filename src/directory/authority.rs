//! The directory authority: accepts descriptors, requests a proof of each relay's addresses, and signs the consensus.
//!
//! Owns the authority's key, the state of every relay and volunteer, and the last consensus. Driven by descriptors,
//! reports, outcomes of dials and wall-clock time. The owner performs the actions of [`AuthorityEvent`]: it dials
//! relays, stores records, and serves documents. Governed by `proto/07-directory.md` §6 and §9. Threats addressed: a
//! relay is listed neither with the address of another node nor with a weight that the relay claims.
//!
//! Votes of several authorities aren't implemented: this authority signs its own list.

mod ages;
#[cfg(any(test, fuzzing))]
mod check;
mod crowding;
mod relays;
mod volunteers;

use std::collections::VecDeque;

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use rand::CryptoRng;

use super::{
    AuthorityId, CLOCK_SKEW, Consensus, ConsensusBody, Counted, Dates, Descriptor, DescriptorError, MAX_CONSENSUS_LEN,
    MAX_RELAYS, Parameters, PresenceError, Registration, SignedConsensus, SignedVolunteerList, UnverifiedConsensus,
    UnverifiedDescriptor, VolunteerList,
};
use crate::{
    base::{AddressPrefix, DialError, DialTarget, Instant, RelayId, WallTime},
    crypto::IdentityKey,
    exit_policy::is_global,
};
use ages::{Ages, FormerRelay};
use relays::{RelayEntries, RelayEntry};
use volunteers::Volunteers;

/// Cap on held relays: [`MAX_RELAYS`] proved ones, and at least 1,024 unproved ones.
const MAX_HELD: usize = MAX_RELAYS + 1_024;
/// Cap on proofs in progress.
const MAX_PROOFS: usize = 32;

/// Maximum time from the clock at the start to the date of the last consensus, if the clock is before that date.
const MAX_CLOCK_LAG: Duration = Duration::from_secs(60);
/// Bytes reserved for the signatures of a signed consensus.
const SIGNATURE_RESERVE: usize = 1024;
/// Bytes reserved for the dates and the parameters of a consensus.
const PARAMETERS_RESERVE: usize = 32 * 1024;

/// Settings of an authority.
#[derive(Clone, Debug)]
pub struct AuthorityConfig {
    /// The number of relays that may be listed, from which on the first consensus is created; 0 counts as 1.
    pub first_consensus_relays: usize,
    /// Interval between two consensuses.
    pub interval: Duration,
    /// Validity of a consensus, at most a week.
    pub lifetime: Duration,
    /// Interval between two proofs of a relay.
    pub proof_interval: Duration,
    /// Time from a relay's first descriptor to the flag stable. A relay known for at least as long as the median listed
    /// relay is stable too.
    pub stable_after: Duration,
    /// Whether relays may have private and loopback addresses. If so, there are no caps on relays at one address, in
    /// one network or in one block.
    pub private_addresses: bool,
    /// Whether the operator states that the clock is right, even if it doesn't match the last consensus.
    pub clock_is_right: bool,
    /// The parameters of the consensus.
    pub parameters: Parameters,
}

impl Default for AuthorityConfig {
    /// The settings of a network on the Internet: a consensus each half hour, valid for a day.
    fn default() -> Self {
        Self {
            first_consensus_relays: 3,
            interval: Duration::from_secs(30 * 60),
            lifetime: Duration::from_secs(24 * 60 * 60),
            proof_interval: Duration::from_secs(60 * 60),
            stable_after: Duration::from_secs(7 * 24 * 60 * 60),
            private_addresses: false,
            clock_is_right: false,
            parameters: Parameters::default(),
        }
    }
}

impl AuthorityConfig {
    /// The settings of a testnet of `relays` relays on one machine: the first consensus lists all relays, and a new
    /// consensus follows each 20 s.
    #[must_use]
    pub fn testnet(relays: usize) -> Self {
        Self {
            first_consensus_relays: relays,
            interval: Duration::from_secs(20),
            proof_interval: Duration::from_secs(20),
            stable_after: Duration::ZERO,
            private_addresses: true,
            parameters: Parameters::default().of_testnet(),
            ..Self::default()
        }
    }
}

/// A mismatch of the clock at the start and the last consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockMismatch {
    /// The clock is this long before the date of the last consensus.
    #[error("the machine's clock is {} s before the last consensus", .0.as_secs())]
    Behind(Duration),
    /// The clock is this long after the date of the last consensus, which has expired.
    #[error("the machine's clock is {} s after the last consensus, which has expired", .0.as_secs())]
    Ahead(Duration),
}

/// Why a relay failed the proof of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The dial failed.
    #[error("the dial failed: {0}")]
    Dial(#[from] DialError),
    /// The node at the address didn't authenticate as the relay.
    #[error("the node at the address did not authenticate as the relay")]
    Identity,
}

/// The source and the network of the peer that sent a descriptor to the authority.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Publisher {
    source: AddressPrefix,
    network: AddressPrefix,
}

impl fmt::Debug for Publisher {
    /// Without the address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

impl Publisher {
    /// The publisher at this address; `None` if the address isn't global, for example that of a reverse proxy.
    #[must_use]
    pub fn at(address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        is_global(address).then(|| Self::of(address))
    }

    fn of(address: IpAddr) -> Self {
        Self { source: AddressPrefix::source(address), network: AddressPrefix::network(address) }
    }

    /// The substitute for an unknown publisher: one at the first address of the descriptor.
    fn claimed(descriptor: &Descriptor) -> Self {
        Self::of(descriptor.profile.addresses.first().map_or(Ipv4Addr::UNSPECIFIED.into(), SocketAddr::ip))
    }
}

/// Actions that the owner must perform in the order of [`Authority::poll_event`].
#[derive(Debug)]
pub enum AuthorityEvent {
    /// Dial the relay at the one address of the target, verify the relay's identity, and call
    /// [`Authority::handle_proof`].
    Prove(DialTarget),
    /// Store this consensus for [`Authority::restore`], then serve it in place of the last one.
    Publish(SignedConsensus),
    /// Serve this volunteer list in place of the last one, without storing it.
    PublishVolunteers(SignedVolunteerList),
    /// Store this record for [`Authority::restore`], in place of the relay's last record.
    StoreRecord {
        /// The relay.
        relay: RelayId,
        /// An encoded `RelayRecord`.
        record: Vec<u8>,
    },
    /// Delete the relay's record.
    DeleteRecord(RelayId),
}

/// The state machine of an authority. Drain [`Self::poll_event`] after each call.
pub struct Authority {
    key: IdentityKey,
    config: AuthorityConfig,
    relays: RelayEntries,
    ages: Ages,
    volunteers: Volunteers,
    last: Option<Consensus>,
    next_consensus: Option<WallTime>,
    events: VecDeque<AuthorityEvent>,
}

impl Authority {
    /// An authority without relays that signs with `key`.
    #[must_use]
    pub fn new(key: IdentityKey, config: AuthorityConfig) -> Self {
        let (relays, ages) = (RelayEntries::new(config.private_addresses), Ages::new(config.private_addresses));
        let (volunteers, events) = (Volunteers::default(), VecDeque::new());
        Self { key, config, relays, ages, volunteers, last: None, next_consensus: None, events }
    }

    /// The public key, under which nodes verify the consensus.
    #[must_use]
    pub fn id(&self) -> AuthorityId {
        self.key.id().into()
    }

    /// Compares `now`, the clock at the start, with `consensus`, the last consensus that this authority signed. A
    /// mismatch means that the clock is wrong, that it was wrong when the consensus was signed, or that the directory
    /// didn't run for long. Returns `None` if the configuration states that the clock is right
    /// ([`AuthorityConfig::clock_is_right`]).
    #[must_use]
    pub fn clock_mismatch(&self, now: WallTime, consensus: &[u8]) -> Option<ClockMismatch> {
        let last = self.own_consensus(consensus).filter(|_| !self.config.clock_is_right)?;
        if last.valid_after() > now.after(MAX_CLOCK_LAG) {
            return Some(ClockMismatch::Behind(last.valid_after().since(now)));
        }
        last.is_expired(now).then(|| ClockMismatch::Ahead(now.since(last.valid_after())))
    }

    /// The consensus in these bytes, if this authority signed it.
    fn own_consensus(&self, consensus: &[u8]) -> Option<Consensus> {
        UnverifiedConsensus::decode(consensus).ok()?.verify_signatures(&[self.id()]).ok()
    }

    /// The number of relays that may be listed at `now`. The caps can reduce the number in a consensus.
    #[must_use]
    pub fn listed(&self, now: WallTime) -> usize {
        self.relays.listed(now).count()
    }

    /// Restores stored state: the records of relays and the last consensus. A consensus that hasn't expired is
    /// published again. Of a relay whose descriptor is stale, only the age is kept. Malformed records are skipped, and
    /// so is a consensus that is malformed, from the future, or of another authority.
    pub fn restore<'a>(
        &mut self,
        now: WallTime,
        records: impl IntoIterator<Item = &'a [u8]>,
        consensus: Option<&[u8]>,
    ) {
        let (mut current, mut outdated) = (Vec::new(), Vec::new());
        for record in records {
            if let Some((relay, former)) = FormerRelay::decode(record, now) {
                let dropped = self.ages.add(relay, former);
                self.events.extend(dropped.into_iter().map(AuthorityEvent::DeleteRecord));
            } else if let Some(entry) = RelayEntry::decode(record, now) {
                if entry.is_current(now) { current.push(entry) } else { outdated.push(entry) }
            }
        }
        outdated.extend(self.relays.restore(current, MAX_RELAYS));
        for entry in outdated {
            self.handle_removal(entry, now);
        }
        let own = consensus.and_then(|bytes| Some((self.own_consensus(bytes)?, bytes)));
        // No node accepts a consensus from the future. After one that a wrong clock has dated, the next consensus has
        // the right date.
        let is_usable = |consensus: &Consensus| consensus.valid_after() <= now.after(CLOCK_SKEW);
        if let Some((consensus, bytes)) = own.filter(|(consensus, _)| is_usable(consensus)) {
            self.next_consensus = Some(consensus.valid_after().after(self.config.interval));
            if !consensus.is_expired(now) {
                self.events.push_back(AuthorityEvent::Publish(SignedConsensus::from_bytes(bytes.to_vec())));
            }
            self.last = Some(consensus);
        }
        self.handle_timeout(now);
    }

    /// Handles a descriptor (an encoded `SignedDescriptor`). `publisher` is `None` if the sender's address is unknown
    /// or not global. The relay is listed once its addresses are proved. A repeated descriptor has no effect and is no
    /// error.
    ///
    /// # Errors
    /// When the descriptor is refused; the text may be shown to the sender.
    pub fn handle_descriptor(
        &mut self,
        now: WallTime,
        bytes: &[u8],
        publisher: Option<Publisher>,
    ) -> Result<RelayId, DescriptorError> {
        let descriptor = UnverifiedDescriptor::decode(bytes)?.verify(now)?;
        let identity = descriptor.profile.identity;
        let is_public = descriptor.profile.addresses.iter().all(|address| is_global(address.ip()));
        if !is_public && !self.config.private_addresses {
            return Err(DescriptorError::PrivateAddress);
        }
        let addresses = &descriptor.profile.addresses;
        let is_settled = match self.relays.entry(&identity) {
            Some(known) if known.descriptor == descriptor => return Ok(identity),
            Some(known) if known.descriptor.published >= descriptor.published => return Err(DescriptorError::Older),
            Some(known) if !known.may_change(now) => return Err(DescriptorError::TooSoon),
            Some(known) => known.is_proved() && known.descriptor.profile.addresses == *addresses,
            None => false,
        };
        if !is_settled && self.relays.is_crowded(&identity, addresses) {
            return Err(DescriptorError::Crowded);
        }
        match self.relays.entry(&identity).map(|known| known.descriptor.profile.addresses == *addresses) {
            Some(is_at_the_same_addresses) => {
                // A relay at new addresses becomes unproved.
                let evicted =
                    if is_at_the_same_addresses { Vec::new() } else { self.relays.evict_for(&identity, addresses) };
                self.relays.change(&identity, |known| known.replace(descriptor, bytes, publisher, now));
                for entry in evicted {
                    self.handle_removal(entry, now);
                }
            }
            None => self.add(RelayEntry::new(descriptor, bytes, now).with_publisher(publisher), now)?,
        }
        self.store(&identity);
        self.handle_timeout(now);
        Ok(identity)
    }

    /// Handles the outcome of one requested dial. A proof succeeds once the dials of all addresses have succeeded. A
    /// success doesn't count if the relay's dial target has changed since the request.
    pub fn handle_proof(&mut self, now: WallTime, target: &DialTarget, outcome: Result<(), ProofError>) {
        let Some(entry) = self.relays.entry(&target.relay) else { return };
        if let Err(error) = &outcome {
            tracing::info!(relay = %target.relay, %error, "the proof of a relay's address failed");
        }
        let was_proved = entry.is_proved();
        let interval = self.config.proof_interval;
        self.relays.change(&target.relay, |entry| entry.handle_dial(now, target, outcome, interval));
        if !was_proved {
            self.handle_newly_proved(now, &target.relay);
        }
        self.store(&target.relay);
        self.handle_timeout(now);
    }

    /// Handles a volunteer's registration (an encoded `SignedVolunteer`). The volunteer is listed once a gateway of its
    /// ranking has reported it. A repeated registration returns the volunteer's current gateways.
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

    /// Handles a gateway's report of the volunteers with a channel to it (an encoded `SignedPresence`). Returns the
    /// volunteers for which the report counts.
    ///
    /// # Errors
    /// When the report is refused; the text may be shown to the sender.
    pub fn handle_presence(&mut self, now: WallTime, bytes: &[u8]) -> Result<Counted, PresenceError> {
        self.volunteers.report(now, bytes, self.last.as_ref())
    }

    /// Handles deadlines: drops stale relays, requests proofs, signs a consensus and a volunteer list.
    pub fn handle_timeout(&mut self, now: WallTime) {
        for entry in self.relays.handle_due(now, self.config.proof_interval) {
            tracing::info!(relay = %entry.identity(), "dropping a relay whose descriptor is too old");
            self.handle_removal(entry, now);
        }
        let expired = self.ages.remove_expired(now);
        self.events.extend(expired.into_iter().map(AuthorityEvent::DeleteRecord));
        for target in self.relays.start_proofs(now, MAX_PROOFS) {
            self.events.push_back(AuthorityEvent::Prove(target));
        }
        if self.is_consensus_due(now) {
            self.publish(now);
        }
        self.publish_volunteers(now);
    }

    /// The next deadline for [`Self::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<WallTime> {
        [self.next_consensus, self.relays.next_visit(), self.volunteers.next_list()].into_iter().flatten().min()
    }

    /// The next action for the owner.
    pub fn poll_event(&mut self) -> Option<AuthorityEvent> {
        self.events.pop_front()
    }

    fn is_consensus_due(&self, now: WallTime) -> bool {
        match self.next_consensus {
            Some(next) => now >= next,
            None => self.listed(now) >= self.config.first_consensus_relays.max(1),
        }
    }

    /// Signs a new consensus, unless no relay is listed. In that case the last consensus stays usable until it expires.
    fn publish(&mut self, now: WallTime) {
        self.next_consensus = Some(now.after(self.config.interval));
        let max_len = MAX_CONSENSUS_LEN.saturating_sub(SIGNATURE_RESERVE);
        let max_relays_len = max_len.saturating_sub(PARAMETERS_RESERVE);
        let list = self.relays.list(now, self.config.stable_after, MAX_RELAYS, max_relays_len);
        if list.is_empty() {
            tracing::warn!("no relay can be listed; there is no new consensus");
            return;
        }
        let last = self.last.as_ref().map(Consensus::valid_after);
        let dates = Dates::of_next(now, last, self.config.interval, self.config.lifetime);
        let relays = list.len();
        match Consensus::new(&dates, &ConsensusBody::new(self.config.parameters.clone(), list)) {
            Ok((consensus, encoded)) if encoded.len() <= max_len => {
                tracing::info!(relays, "signed a consensus");
                self.last = Some(consensus);
                self.events.push_back(AuthorityEvent::Publish(Consensus::sign(encoded, [&self.key])));
            }
            Ok((_, encoded)) => tracing::error!(length = encoded.len(), "can't create a consensus: it is too long"),
            Err(error) => tracing::error!(%error, "can't create a consensus"),
        }
    }

    /// Signs a new volunteer list, if one is due and there is a consensus. The list may be empty.
    fn publish_volunteers(&mut self, now: WallTime) {
        let Some(consensus) = &self.last else { return };
        let names_family = |relay: &RelayId, volunteer: &RelayId| self.relays.names_family(relay, volunteer);
        if let Some(encoded) = self.volunteers.list(now, consensus, names_family) {
            let signed = VolunteerList::sign(encoded, [&self.key]);
            self.events.push_back(AuthorityEvent::PublishVolunteers(signed));
        }
    }

    /// Adds a new relay. At a cap, evicts an unproved relay, because new identities cost nothing. No unproved relay
    /// displaces a proved one; if the new relay couldn't do so after its proof, it is refused.
    fn add(&mut self, entry: RelayEntry, now: WallTime) -> Result<(), DescriptorError> {
        let (identity, addresses) = (entry.identity(), &entry.descriptor.profile.addresses);
        if self.relays.proved() >= MAX_RELAYS && self.relays.displaceable(now, addresses).is_none() {
            return Err(DescriptorError::Full);
        }
        let mut evicted = self.relays.evict_for(&identity, addresses);
        if self.relays.len() >= MAX_HELD {
            evicted.push(self.relays.evict_unproved().ok_or(DescriptorError::Full)?);
        }
        self.relays.insert(entry);
        for entry in evicted {
            self.handle_removal(entry, now);
        }
        Ok(())
    }

    /// Handles the proof of a relay that wasn't proved at its addresses before, if the proof has succeeded. The relay
    /// has the age of its first proof, even if it was dropped since. The relay is dropped if there is no place for it.
    fn handle_newly_proved(&mut self, now: WallTime, relay: &RelayId) {
        if !self.relays.entry(relay).is_some_and(RelayEntry::is_proved) {
            return;
        }
        // The caps apply to the other relays.
        let Some(mut entry) = self.relays.remove(relay) else { return };
        let addresses = &entry.descriptor.profile.addresses;
        let no_place = if self.relays.is_crowded(relay, addresses) {
            // During the dial, other relays reached a cap there.
            Some("too many relays at its address or in its network")
        } else if self.relays.proved() >= MAX_RELAYS {
            let displaced = self.relays.displaceable(now, addresses);
            let displaced = displaced.and_then(|displaced| self.relays.remove(&displaced));
            let no_place = displaced.is_none().then_some("the directory is full");
            displaced.into_iter().for_each(|entry| self.handle_removal(entry, now));
            no_place
        } else {
            None
        };
        if let Some(reason) = no_place {
            tracing::info!(%relay, reason, "dropping a relay after its proof");
            return self.handle_removal(entry, now);
        }
        if !entry.is_stored() {
            entry.set_known_since(self.ages.take(relay, now).unwrap_or(now));
        }
        self.relays.insert(entry);
    }

    /// Handles the removal of a relay. If the relay was ever proved, its age is kept.
    fn handle_removal(&mut self, entry: RelayEntry, now: WallTime) {
        let relay = entry.identity();
        let Some(former) = entry.former(now) else {
            // The record of an age must stay.
            if !self.ages.contains(&relay) {
                self.events.push_back(AuthorityEvent::DeleteRecord(relay));
            }
            return;
        };
        self.events.push_back(AuthorityEvent::StoreRecord { relay, record: former.encode(&relay) });
        let dropped = self.ages.add(relay, former);
        self.events.extend(dropped.into_iter().map(AuthorityEvent::DeleteRecord));
    }

    /// Requests the storage of the relay's record, once the relay has been proved.
    fn store(&mut self, relay: &RelayId) {
        if let Some(entry) = self.relays.entry(relay).filter(|entry| entry.is_stored()) {
            self.events.push_back(AuthorityEvent::StoreRecord { relay: *relay, record: entry.encode() });
        }
    }
}

/// A wall-clock time as an instant, for deadlines and rates.
const fn instant(time: WallTime) -> Instant {
    Instant::from_nanos(time.as_unix().saturating_mul(1_000_000_000))
}

#[cfg(test)]
mod tests;
