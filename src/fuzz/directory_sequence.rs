//! Fuzz target: an authority with an honest relay and hostile publishers, relays and volunteers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use core::time::Duration;

use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use super::{Choices, FuzzTarget};
use crate::{
    base::{AddressPrefix, DialError, DialTarget, RelayId, WallTime},
    directory::{
        Authority, AuthorityConfig, AuthorityEvent, AuthorityId, Consensus, Presence, ProofError, Publisher,
        UnverifiedConsensus, UnverifiedVolunteerList, fixture,
    },
};

pub(super) const TARGETS: &[FuzzTarget] =
    &[FuzzTarget { name: "directory_sequence", run: directory_sequence, seeds: sequence_seeds }];

/// The number of the authority's key.
const AUTHORITY: u16 = 900;
/// The number of the honest relay.
const HONEST: u16 = 800;
/// The number of the first hostile volunteer; hostile relays have numbers from 1 on.
const FIRST_VOLUNTEER: u16 = 500;
const HOSTILE_RELAYS: u8 = 48;
const VOLUNTEERS: u8 = 16;
/// Interval at which the honest relay publishes its descriptor.
const REPUBLISH: Duration = Duration::from_secs(3600);
/// Maximum relays of a consensus in one network (`docs/resources.md`).
const LISTED_OF_NETWORK: usize = 16;

fn config() -> AuthorityConfig {
    AuthorityConfig { first_consensus_relays: 1, ..AuthorityConfig::default() }
}

/// An authority, its storage, and the dials that it has requested.
struct DirectoryWorld {
    now: WallTime,
    rng: ChaCha8Rng,
    authority: Authority,
    /// The stored records, and the stored consensus.
    records: BTreeMap<RelayId, Vec<u8>>,
    stored: Option<Vec<u8>>,
    last: Option<Consensus>,
    /// Dials of hostile relays without an outcome.
    dials: Vec<DialTarget>,
    /// The addresses at which each relay was proved.
    proved: BTreeMap<RelayId, BTreeSet<SocketAddr>>,
    /// The honest relay's last descriptor; `None` once it has left.
    published: Option<WallTime>,
}

impl DirectoryWorld {
    fn new() -> Self {
        let mut world = Self {
            now: fixture::NOW,
            rng: ChaCha8Rng::seed_from_u64(6),
            authority: Authority::new(fixture::key(AUTHORITY), config()),
            records: BTreeMap::new(),
            stored: None,
            last: None,
            dials: Vec::new(),
            proved: BTreeMap::new(),
            published: Some(fixture::NOW),
        };
        world.publish_honest();
        world.turn();
        assert!(world.last.is_some(), "the honest relay is proved");
        world
    }

    /// The honest relay publishes its descriptor.
    fn publish_honest(&mut self) {
        let descriptor = fixture::descriptor(HONEST, fixture::profile(HONEST), self.now);
        let publisher = Publisher::at([92, 0, 2, 1].into());
        self.authority.handle_descriptor(self.now, &descriptor, publisher).expect("the honest relay has a place");
        self.published = Some(self.now);
    }

    /// Handles the deadlines at the current time, and performs the authority's actions. The honest relay answers dials.
    fn turn(&mut self) {
        self.authority.handle_timeout(self.now);
        while let Some(event) = self.authority.poll_event() {
            match event {
                AuthorityEvent::Prove(target) if target == fixture::profile(HONEST).dial_target() => {
                    self.proved.entry(target.relay).or_default().extend(&target.addresses);
                    if self.published.is_some() {
                        self.authority.handle_proof(self.now, &target, Ok(()));
                    }
                }
                AuthorityEvent::Prove(target) => self.dials.push(target),
                AuthorityEvent::Publish(consensus) => self.check_consensus(consensus.into_bytes()),
                AuthorityEvent::PublishVolunteers(list) => self.check_volunteers(&list.into_bytes()),
                AuthorityEvent::StoreRecord { relay, record } => drop(self.records.insert(relay, record)),
                AuthorityEvent::DeleteRecord(relay) => drop(self.records.remove(&relay)),
            }
        }
        self.authority.assert_sound(self.now);
        assert!(self.authority.poll_timeout().is_none_or(|due| due > self.now), "a deadline is left after its turn");
    }

    fn id() -> AuthorityId {
        fixture::key(AUTHORITY).id().into()
    }

    /// A consensus is valid, later than the last one, within the caps, and lists only relays at addresses at which they
    /// were proved. It lists the honest relay.
    fn check_consensus(&mut self, bytes: Vec<u8>) {
        let consensus = UnverifiedConsensus::decode(&bytes).expect("a consensus can be decoded");
        let consensus = consensus.verify(&[Self::id()], self.now, None).expect("the consensus is valid");
        if let Some(last) = &self.last {
            assert!(consensus.valid_after() >= last.valid_after(), "an earlier consensus");
        }
        let mut networks = BTreeMap::<AddressPrefix, usize>::new();
        for relay in consensus.relays() {
            let proved = self.proved.get(&relay.identity()).expect("a listed relay was proved");
            assert!(relay.profile.addresses.iter().all(|address| proved.contains(address)), "an unproved address");
            let of_relay: BTreeSet<_> =
                relay.profile.addresses.iter().map(|address| AddressPrefix::network(address.ip())).collect();
            for network in of_relay {
                *networks.entry(network).or_default() += 1;
            }
        }
        assert!(networks.values().all(|relays| *relays <= LISTED_OF_NETWORK), "relays of one network");
        if self.published.is_some() {
            assert!(consensus.relay(&fixture::key(HONEST).id()).is_some(), "the honest relay is not listed");
        }
        self.stored = Some(bytes);
        self.last = Some(consensus);
    }

    /// A list of volunteers is valid, and its gateways are relays of the consensus.
    fn check_volunteers(&self, bytes: &[u8]) {
        let list = UnverifiedVolunteerList::decode(bytes).expect("a list can be decoded");
        let list = list.verify(&[Self::id()], self.now, None).expect("the list is valid");
        let consensus = self.last.as_ref().expect("a consensus precedes");
        for volunteer in list.volunteers() {
            assert!((1..=3).contains(&volunteer.gateways.len()));
            assert!(volunteer.gateways.iter().all(|gateway| consensus.relay(gateway).is_some()));
        }
    }

    /// Time passes, with a turn at each deadline.
    fn pass(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            let due = self.authority.poll_timeout().unwrap_or(end);
            self.now = due.max(self.now.after(Duration::from_secs(1))).min(end);
            if self.published.is_some_and(|published| self.now.since(published) >= REPUBLISH) {
                self.publish_honest();
            }
            self.turn();
        }
    }

    /// Performs one operation.
    fn step(&mut self, choices: &mut Choices<'_>) {
        let (operation, choice) = (choices.u8() % 12, choices.u8());
        match operation {
            0 => self.pass(Duration::from_secs(1 << (choice % 12))),
            1..=3 => self.publish(choice, choices),
            4 | 5 => self.prove(choice, choices.u8()),
            6 => {
                let volunteer = FIRST_VOLUNTEER + u16::from(choice % VOLUNTEERS);
                let mut profile = fixture::volunteer_profile(volunteer);
                if choice >= 128 {
                    profile.family = vec![fixture::key(HONEST).id()];
                }
                let registration = fixture::volunteer(volunteer, profile, self.date(choices.u8()));
                _ = self.authority.handle_volunteer(self.now, &registration, &mut self.rng);
            }
            7 => self.report(choice, choices),
            8 => {
                let bytes = choices.bytes();
                match choice % 5 {
                    0 => _ = self.authority.handle_descriptor(self.now, bytes, None),
                    1 => {
                        let descriptor = fixture::sign_descriptor(u16::from(choice / 8) + 1, bytes);
                        _ = self.authority.handle_descriptor(self.now, &descriptor, None);
                    }
                    2 => _ = self.authority.handle_volunteer(self.now, bytes, &mut self.rng),
                    3 => _ = self.authority.handle_presence(self.now, bytes),
                    _ => self.restart(Some(bytes)),
                }
            }
            9 => self.restart(None),
            _ => {
                // Many relays at once.
                for relay in 0..choice % 8 {
                    self.publish(choice.wrapping_add(relay), choices);
                }
            }
        }
    }

    /// A date around now.
    fn date(&self, choice: u8) -> WallTime {
        match choice % 4 {
            0 => self.now.before(Duration::from_secs(u64::from(choice) * 60)),
            1 => self.now.after(Duration::from_secs(u64::from(choice) * 60)),
            _ => self.now,
        }
    }

    /// A hostile relay publishes a descriptor: with an address of a few networks, or with the honest relay's.
    fn publish(&mut self, choice: u8, choices: &mut Choices<'_>) {
        let relay = u16::from(choice % HOSTILE_RELAYS) + 1;
        let address = |choice: u8| match choice {
            255 => fixture::profile(HONEST).addresses[0],
            _ => SocketAddr::from(([20, choice % 2, choice / 64, choice % 32], 443)),
        };
        let mut profile = fixture::profile(relay);
        profile.addresses = vec![address(choices.u8())];
        let options = choices.u8();
        if options & 1 != 0 {
            let choice = u16::from(choices.u8());
            let second = [0x2a00, choice % 2, 0, choice / 64, 0, 0, 0, choice % 32];
            profile.addresses.push(SocketAddr::from((second, 443)));
        }
        if options & 2 != 0 {
            profile.family = vec![fixture::key(HONEST).id()];
        }
        let publisher = Publisher::at(IpAddr::from([91, options / 64, 0, options / 32]));
        let descriptor = fixture::descriptor(relay, profile, self.date(options / 4));
        _ = self.authority.handle_descriptor(self.now, &descriptor, publisher);
    }

    /// The outcome of a dial. A hostile relay is never proved at the honest relay's address.
    fn prove(&mut self, choice: u8, outcome: u8) {
        let Some(index) = usize::from(choice).checked_rem(self.dials.len()) else { return };
        let target = self.dials.swap_remove(index);
        let honest = fixture::profile(HONEST).addresses;
        let succeeds = !target.addresses.iter().any(|address| honest.contains(address)) && !outcome.is_multiple_of(4);
        let outcome = match outcome % 2 {
            _ if succeeds => Ok(()),
            0 => Err(ProofError::Identity),
            _ => Err(ProofError::Dial(DialError::TimedOut)),
        };
        if succeeds {
            self.proved.entry(target.relay).or_default().extend(&target.addresses);
        }
        self.authority.handle_proof(self.now, &target, outcome);
    }

    /// A relay reports volunteers.
    fn report(&mut self, choice: u8, choices: &mut Choices<'_>) {
        let number = if choice >= 128 { HONEST } else { u16::from(choice % HOSTILE_RELAYS) + 1 };
        let set = choices.u16();
        let reported = (0..VOLUNTEERS).filter(|volunteer| set & (1 << volunteer) != 0);
        let mut volunteers: Vec<_> =
            reported.map(|volunteer| fixture::key(FIRST_VOLUNTEER + u16::from(volunteer)).id()).collect();
        volunteers.sort_unstable();
        let at_ms = self.date(choices.u8()).as_unix() * 1000;
        let presence = Presence { gateway: fixture::key(number).id(), at_ms, volunteers };
        let Ok(presence) = presence.sign(&fixture::key(number)) else { return };
        if let Ok(counted) = self.authority.handle_presence(self.now, &presence) {
            assert!(counted.volunteers.len() <= usize::from(VOLUNTEERS));
        }
    }

    /// The authority restarts with its storage, to which `corrupted` is added.
    fn restart(&mut self, corrupted: Option<&[u8]>) {
        self.authority = Authority::new(fixture::key(AUTHORITY), config());
        self.dials.clear();
        let records = self.records.values().map(Vec::as_slice).chain(corrupted);
        self.authority.restore(self.now, records, self.stored.as_deref());
    }

    /// All relays and volunteers stop publishing. None of them is left after the lifetime of their descriptors.
    fn leave(mut self) {
        self.published = None;
        for _ in 0..40 {
            self.now = self.now.after(Duration::from_secs(6 * 3600));
            self.turn();
        }
        assert_eq!(self.authority.held(), (0, 0));
    }
}

/// For any input of publishers, gateways and volunteers, the caps hold, each consensus is valid and lists the honest
/// relay, and no relay is listed at an address at which it was not proved.
fn directory_sequence(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut world = DirectoryWorld::new();
    while !choices.is_empty() {
        world.step(&mut choices);
        world.turn();
    }
    world.leave();
}

/// Inputs with relays that are proved, fail, move and restart, and with volunteers and reports.
fn sequence_seeds() -> Vec<Vec<u8>> {
    let mut relays = Vec::new();
    for relay in 0..24 {
        relays.extend([1, relay, relay * 3, 0, 4, 0, 1 + relay % 4]);
    }
    relays.extend([0, 11, 1, 3, 255, 0, 4, 0, 1, 2, 5, 7, 1, 9, 0, 11, 9, 0, 0, 11]);
    let mut volunteers = vec![1, 0, 7, 2, 4, 0, 1, 0, 11];
    for volunteer in 0..6 {
        volunteers.extend([6, volunteer, 2]);
    }
    volunteers.extend([7, 200, 0, 63, 2, 7, 0, 0, 15, 2, 0, 6, 7, 200, 0, 1, 2, 0, 8, 8, 4, 0, 3, 1, 2, 3, 0, 9]);
    let crowded =
        [&[10, 7][..], &[7, 0, 7, 1, 9, 7, 64, 7, 0, 7, 2], &[4, 0, 1].repeat(12), &[0, 9, 9, 0, 0, 11]].concat();
    vec![relays, volunteers, crowded]
}
