use rand::{SeedableRng as _, rngs::ChaCha20Rng};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::directory::{
    Authority, AuthorityConfig, AuthorityEvent, DESCRIPTOR_LIFETIME, MAX_PRESENT, Presence, Profile, RANKED_GATEWAYS,
    UnverifiedConsensus, UnverifiedVolunteerList, VolunteerProfile,
    fixture::{NOW, descriptor, key, profile, volunteer, volunteer_profile},
};

const VOLUNTEER: u16 = 900;
/// The interval of a testnet.
const INTERVAL: u64 = 1;

fn later(seconds: u64) -> WallTime {
    NOW.after(Duration::from_secs(seconds))
}

/// An authority and its last publications, as verified by other nodes.
struct World {
    authority: Authority,
    rng: ChaCha20Rng,
    consensus: Option<Consensus>,
    list: Option<VolunteerList>,
    /// The number of lists published during the last [`Self::settle`].
    new_lists: usize,
}

impl World {
    /// A network of relays 1 to `relays`, all listed.
    fn of(relays: u16, config: AuthorityConfig) -> Self {
        let authority = Authority::new(key(100), config);
        let mut world =
            Self { authority, rng: ChaCha20Rng::seed_from_u64(7), consensus: None, list: None, new_lists: 0 };
        (1..=relays).for_each(|number| world.add(number, profile(number), NOW));
        world.settle(NOW);
        assert_eq!(world.consensus.as_ref().map_or(0, |it| it.relays().len()), usize::from(relays));
        world
    }

    fn testnet(relays: u16) -> Self {
        Self::of(relays, AuthorityConfig::testnet(relays.into()))
    }

    fn add(&mut self, number: u16, profile: Profile, now: WallTime) {
        let target = profile.dial_target();
        self.authority.handle_descriptor(now, &descriptor(number, profile, now), None).unwrap();
        self.authority.handle_proof(now, &target, Ok(()));
    }

    /// Handles deadlines, and takes the published documents.
    fn settle(&mut self, now: WallTime) {
        self.authority.handle_timeout(now);
        self.new_lists = 0;
        let authorities = [key(100).id().into()];
        while let Some(event) = self.authority.poll_event() {
            match event {
                AuthorityEvent::Publish(signed) => {
                    let consensus = UnverifiedConsensus::decode(signed.as_bytes()).unwrap();
                    self.consensus = Some(consensus.verify(&authorities, now, self.consensus.as_ref()).unwrap());
                }
                AuthorityEvent::PublishVolunteers(signed) => {
                    let list = UnverifiedVolunteerList::decode(signed.as_bytes()).unwrap();
                    self.list = Some(list.verify(&authorities, now, self.list.as_ref()).unwrap());
                    self.new_lists += 1;
                }
                _ => {}
            }
        }
    }

    fn register_as(&mut self, now: WallTime, bytes: &[u8]) -> Result<Registration, DescriptorError> {
        self.authority.handle_volunteer(now, bytes, &mut self.rng)
    }

    fn register(&mut self, number: u16, now: WallTime) -> Registration {
        self.register_as(now, &volunteer(number, volunteer_profile(number), NOW)).unwrap()
    }

    /// The numbers of the relays in a volunteer's ranking, the best first.
    fn ranking(&self, seed: &[u8; 32], number: u16) -> Vec<u16> {
        let ranking = gateway_ranking(seed, &key(number).id(), self.consensus.as_ref().unwrap());
        ranking.iter().map(|relay| (1..=100).find(|number| key(*number).id() == *relay).unwrap()).collect()
    }

    fn report(&mut self, gateway: u16, volunteers: &[u16], now: WallTime) -> Result<Counted, PresenceError> {
        self.authority.handle_presence(now, &presence(gateway, volunteers, now.as_unix() * 1000))
    }

    /// A volunteer's gateways in the last list.
    fn listed(&self, number: u16) -> Option<Vec<RelayId>> {
        self.list.as_ref()?.volunteer(&key(number).id()).map(|volunteer| volunteer.gateways.clone())
    }
}

fn ids(numbers: &[u16]) -> Vec<RelayId> {
    numbers.iter().map(|number| key(*number).id()).collect()
}

fn presence(gateway: u16, volunteers: &[u16], at_ms: u64) -> Vec<u8> {
    let mut volunteers = ids(volunteers);
    volunteers.sort_unstable();
    Presence { gateway: key(gateway).id(), at_ms, volunteers }.sign(&key(gateway)).unwrap()
}

#[test]
fn a_volunteer_is_listed_with_the_best_ranked_gateways_that_report_it() {
    let mut world = World::testnet(10);
    let registration = world.register(VOLUNTEER, NOW);
    assert!(registration.gateways.is_empty(), "no gateway has reported the volunteer yet");
    let ranking = world.ranking(&registration.seed, VOLUNTEER);
    for gateway in [ranking[2], ranking[0], ranking[7], ranking[4]] {
        assert_eq!(
            world.report(gateway, &[VOLUNTEER, VOLUNTEER + 1], later(1)).unwrap().volunteers,
            ids(&[VOLUNTEER]),
            "the volunteers for which the report counts"
        );
    }
    let best = ids(&[ranking[0], ranking[2], ranking[4]]);
    assert_eq!(world.register(VOLUNTEER, later(1)).gateways, best);
    world.settle(later(1));
    assert_eq!(world.listed(VOLUNTEER), Some(best));
    let found = world.list.as_ref().unwrap().volunteer(&key(VOLUNTEER).id()).unwrap();
    assert_eq!(found.profile, volunteer_profile(VOLUNTEER));
}

#[test]
fn a_report_does_not_count_for_volunteers_that_rank_other_gateways() {
    let mut world = World::testnet(12);
    let seed = world.register(VOLUNTEER, NOW).seed;
    let ranking = world.ranking(&seed, VOLUNTEER);
    assert_eq!(ranking.len(), RANKED_GATEWAYS);
    let unranked = (1..=12).filter(|number| !ranking.contains(number)).collect::<Vec<_>>();
    assert_eq!(unranked.len(), 12 - RANKED_GATEWAYS);
    for gateway in unranked {
        assert!(
            world.report(gateway, &[VOLUNTEER], later(1)).unwrap().volunteers.is_empty(),
            "the answer excludes the volunteer"
        );
    }
    assert!(world.register(VOLUNTEER, later(1)).gateways.is_empty());
    world.settle(later(1));
    assert_eq!(world.listed(VOLUNTEER), None);
}

#[test]
fn a_report_does_not_count_for_unregistered_volunteers() {
    let mut world = World::testnet(3);
    for gateway in 1..=3 {
        world.report(gateway, &[VOLUNTEER], later(1)).unwrap();
    }
    world.settle(later(1));
    assert_eq!(world.listed(VOLUNTEER), None);
    // A report before the registration doesn't count either.
    assert!(world.register(VOLUNTEER, later(1)).gateways.is_empty());
}

#[test]
fn reports_of_unlisted_relays_and_forged_reports_are_refused() {
    let mut world = World::testnet(3);
    world.register(VOLUNTEER, NOW);
    assert_eq!(world.report(50, &[VOLUNTEER], later(1)), Err(PresenceError::NotListed));
    let good = presence(1, &[VOLUNTEER], later(1).as_unix() * 1000);
    let forged = [&good[..good.len() - 1], &[good[good.len() - 1] ^ 1]].concat();
    assert_eq!(world.authority.handle_presence(later(1), &forged), Err(PresenceError::BadSignature));
    let mut none = Authority::new(key(100), AuthorityConfig::testnet(3));
    assert_eq!(none.handle_presence(NOW, &good), Err(PresenceError::NotListed), "before the first consensus");
}

#[test]
fn replayed_and_older_reports_are_refused() {
    let mut world = World::testnet(3);
    world.register(VOLUNTEER, NOW);
    let at = later(1).as_unix() * 1000;
    let present = presence(1, &[VOLUNTEER], at);
    world.authority.handle_presence(later(1), &present).unwrap();
    world.authority.handle_presence(later(1), &presence(1, &[], at + 1)).unwrap();
    for (again, at) in
        [(present.clone(), 1), (present, 2), (presence(1, &[VOLUNTEER], at + 1), 2), (presence(1, &[VOLUNTEER], 5), 2)]
    {
        assert_eq!(world.authority.handle_presence(later(at), &again), Err(PresenceError::Older));
    }
    assert!(world.register(VOLUNTEER, later(2)).gateways.is_empty());
    // A replay is refused even after all other state has been removed.
    world.settle(later(3600));
    let old = presence(1, &[VOLUNTEER], at + 1);
    assert_eq!(world.authority.handle_presence(later(3600), &old), Err(PresenceError::Older));
    world.settle(later(3700));
    assert_eq!(world.authority.handle_presence(later(3700), &old), Err(PresenceError::WrongTime));
}

#[test]
fn a_report_counts_for_three_intervals_and_replaces_the_previous_one() {
    let mut world = World::testnet(3);
    for number in [VOLUNTEER, VOLUNTEER + 1] {
        world.register(number, NOW);
    }
    world.report(1, &[VOLUNTEER, VOLUNTEER + 1], NOW).unwrap();
    world.settle(later(INTERVAL));
    assert_eq!((world.listed(VOLUNTEER), world.listed(VOLUNTEER + 1)), (Some(ids(&[1])), Some(ids(&[1]))));
    world.report(1, &[VOLUNTEER + 1], later(INTERVAL)).unwrap();
    world.settle(later(2 * INTERVAL));
    assert_eq!(
        (world.listed(VOLUNTEER), world.listed(VOLUNTEER + 1)),
        (None, Some(ids(&[1]))),
        "a volunteer that is not in the last report has left"
    );
    world.settle(later(3 * INTERVAL));
    assert_eq!(world.listed(VOLUNTEER + 1), Some(ids(&[1])));
    world.settle(later(4 * INTERVAL));
    assert_eq!(world.listed(VOLUNTEER + 1), None, "the gateway no longer reports");
}

#[test]
fn the_seed_is_constant_for_a_day_across_registrations() {
    let mut world = World::testnet(3);
    let seed = world.register(VOLUNTEER, NOW).seed;
    assert_ne!(seed, world.register(VOLUNTEER + 1, NOW).seed);
    assert_eq!(world.register(VOLUNTEER, later(5)).seed, seed);
    let newer =
        volunteer(VOLUNTEER, VolunteerProfile { operator: "me".into(), ..volunteer_profile(VOLUNTEER) }, later(6));
    assert_eq!(world.register_as(later(6), &newer).unwrap().seed, seed);
    // The volunteer is removed, because no gateway confirms it. The seed is kept.
    world.settle(later(100));
    let again = volunteer(VOLUNTEER, volunteer_profile(VOLUNTEER), later(1));
    assert_eq!(
        world.register_as(later(101), &again).unwrap().seed,
        seed,
        "a descriptor older than the removed one is accepted"
    );
    let day = SEED_LIFETIME.as_secs();
    let daily = volunteer(VOLUNTEER, volunteer_profile(VOLUNTEER), later(day - 1));
    assert_eq!(world.register_as(later(day - 1), &daily).unwrap().seed, seed);
    assert_ne!(world.register_as(later(day), &daily).unwrap().seed, seed);
}

#[test]
fn seeds_depend_on_the_randomness_of_the_authority() {
    let first = |seed| {
        let mut world = World::testnet(3);
        world.rng = ChaCha20Rng::seed_from_u64(seed);
        world.register(VOLUNTEER, NOW).seed
    };
    assert_ne!(first(1), first(2), "the same identity gets different seeds");
}

#[test]
fn a_repeated_registration_is_accepted_and_an_older_one_is_refused() {
    let mut world = World::testnet(3);
    let old = volunteer(VOLUNTEER, volunteer_profile(VOLUNTEER), NOW);
    let new = volunteer(
        VOLUNTEER,
        VolunteerProfile { onion_key: profile(7).onion_key, ..volunteer_profile(VOLUNTEER) },
        later(1),
    );
    world.register_as(NOW, &old).unwrap();
    world.register_as(later(1), &new).unwrap();
    assert_eq!(world.register_as(later(2), &old), Err(DescriptorError::Older));
    assert!(world.register_as(later(2), &new).is_ok());
    world.report(1, &[VOLUNTEER], later(2)).unwrap();
    world.settle(later(2));
    let found = world.list.as_ref().unwrap().volunteer(&key(VOLUNTEER).id()).unwrap();
    assert_eq!(found.keys().onion_key, profile(7).onion_key);
    let mut forged = volunteer(VOLUNTEER, volunteer_profile(VOLUNTEER), later(3));
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert_eq!(world.register_as(later(3), &forged), Err(DescriptorError::BadSignature));
    assert!(world.register_as(later(4), &new).is_ok(), "a refused registration changes nothing");
}

#[test]
fn a_registration_in_another_encoding_is_recognised_and_a_forged_one_is_refused() {
    let mut world = World::testnet(3);
    let registered = volunteer(VOLUNTEER, volunteer_profile(VOLUNTEER), NOW);
    let first = world.register_as(NOW, &registered).unwrap();
    // An unknown field, number 15, before the others.
    let wrapped = [&[0x7a, 1, 0], registered.as_slice()].concat();
    assert_eq!(world.register_as(later(1), &wrapped), Ok(first));
    let mut guessed = registered;
    *guessed.last_mut().unwrap() ^= 1;
    assert_eq!(world.register_as(later(1), &guessed), Err(DescriptorError::Older));
}

#[test]
fn a_listed_relay_is_refused_as_a_volunteer() {
    let mut world = World::testnet(3);
    let own = volunteer(1, volunteer_profile(1), NOW);
    assert_eq!(world.register_as(NOW, &own), Err(DescriptorError::Public));
    // A volunteer that the consensus lists later isn't in the volunteer list.
    world.register(VOLUNTEER, NOW);
    world.report(1, &[VOLUNTEER], NOW).unwrap();
    world.add(VOLUNTEER, profile(VOLUNTEER), NOW);
    world.settle(later(20));
    assert!(world.consensus.as_ref().unwrap().relay(&key(VOLUNTEER).id()).is_some());
    world.report(1, &[VOLUNTEER], later(20)).unwrap();
    world.settle(later(21));
    assert_eq!(world.listed(VOLUNTEER), None);
}

#[test]
fn an_unconfirmed_volunteer_is_removed_and_a_confirmed_one_stays_until_it_is_stale() {
    let mut world = World::testnet(3);
    for number in [VOLUNTEER, VOLUNTEER + 1] {
        world.register(number, NOW);
    }
    let lifetime = DESCRIPTOR_LIFETIME.as_secs();
    for at in (1..lifetime + 10).step_by(30) {
        world.report(1, &[VOLUNTEER + 1], later(at)).unwrap();
        world.settle(later(at + 1));
        let is_removed = world.authority.volunteers.entries.len() == 1;
        assert_eq!(is_removed, at >= 59, "{at}");
        assert_eq!(world.listed(VOLUNTEER + 1).is_some(), at < lifetime, "{at}");
        if at + 31 > lifetime {
            return;
        }
    }
}

#[test]
fn a_full_directory_evicts_unconfirmed_volunteers_after_their_minimum_stay() {
    let mut world = World::testnet(3);
    let numbers: Vec<u16> = (1000..).take(MAX_VOLUNTEERS).collect();
    for (at, number) in numbers.iter().enumerate() {
        world.register(*number, later(at as u64 / 1000));
    }
    let min_stay = MIN_STAY.as_secs();
    world.report(1, &numbers[..1], later(min_stay - 3)).unwrap();
    world.report(2, &numbers[1..3], later(min_stay)).unwrap();
    let newcomer = |number: u16| volunteer(number, volunteer_profile(number), NOW);
    // No volunteer is evicted before its minimum stay, regardless of the number of registrations.
    let too_early = world.register_as(later(min_stay - 1), &newcomer(VOLUNTEER));
    assert_eq!(too_early, Err(DescriptorError::Full));
    let known = |world: &World, number: u16| world.authority.volunteers.entries.contains_key(&key(number).id());
    assert!(numbers.iter().all(|number| known(&world, *number)));
    // Afterwards, the longest known volunteers without any confirmation are evicted first.
    for number in (0..997).map(|number| 10_000 + number) {
        world.register_as(later(min_stay), &newcomer(number)).unwrap();
    }
    assert!(numbers[3..1000].iter().all(|number| !known(&world, *number)));
    assert!(numbers[..3].iter().chain(&numbers[1000..]).all(|number| known(&world, *number)));
    let now = later(min_stay + 1);
    let remaining: Vec<u16> = numbers[1..3].iter().chain(&numbers[1000..]).copied().chain(10_000..10_997).collect();
    for (at, present) in remaining.chunks(MAX_PRESENT).enumerate() {
        world.authority.handle_presence(now, &presence(1, present, now.as_unix() * 1000 + at as u64)).unwrap();
    }
    world.register_as(now, &newcomer(VOLUNTEER)).unwrap();
    assert!(!known(&world, numbers[0]) && known(&world, VOLUNTEER));
    // All are confirmed or new, so none is evicted.
    assert_eq!(world.register_as(now, &newcomer(VOLUNTEER + 1)), Err(DescriptorError::Full));
    assert!(
        world.register_as(later(min_stay + 4), &newcomer(VOLUNTEER + 1)).is_ok(),
        "a volunteer whose confirmation no longer counts is evicted"
    );
}

#[test]
fn only_volunteers_reported_by_a_gateway_are_ranked() {
    let mut world = World::testnet(3);
    let ranked = |world: &World, number: u16| {
        let entry = &world.authority.volunteers.entries[&key(number).id()];
        entry.ranking.consensus == world.consensus.as_ref().map(|consensus| *consensus.digest())
    };
    for number in [VOLUNTEER, VOLUNTEER + 1] {
        world.register(number, NOW);
    }
    world.report(1, &[VOLUNTEER], later(1)).unwrap();
    for now in [1, 20, 21].map(later) {
        world.settle(now);
        world.register(VOLUNTEER + 1, now);
        assert!(!ranked(&world, VOLUNTEER + 1));
    }
    assert!(!ranked(&world, VOLUNTEER), "no gateway has reported the volunteer since the new consensus");
    world.report(1, &[VOLUNTEER], later(21)).unwrap();
    assert!(ranked(&world, VOLUNTEER));
}

#[test]
fn a_list_is_created_each_interval_after_the_first_consensus_and_may_be_empty() {
    let mut world = World { new_lists: 0, ..World::testnet(3) };
    assert!(world.list.as_ref().is_some_and(|list| list.volunteers().is_empty()));
    assert_eq!(world.list.as_ref().unwrap().valid_until(), later(5 * INTERVAL));
    assert_eq!(world.list.as_ref().unwrap().fresh_until(), later(INTERVAL));
    assert_eq!(world.authority.poll_timeout(), Some(later(INTERVAL)));
    world.settle(NOW);
    assert_eq!(world.new_lists, 0);
    world.settle(later(INTERVAL));
    assert_eq!(world.new_lists, 1);
    let parameters = AuthorityConfig::testnet(1).parameters.with("volunteer.interval-seconds", 30).unwrap();
    let mut slower = World::of(1, AuthorityConfig { parameters, ..AuthorityConfig::testnet(1) });
    slower.settle(later(29));
    assert_eq!(slower.new_lists, 0);
    slower.settle(later(30));
    assert_eq!(slower.new_lists, 1);
    assert_eq!(slower.list.unwrap().valid_until(), later(30 + 150));
    let mut without_consensus = World::of(0, AuthorityConfig::testnet(3));
    without_consensus.settle(later(60));
    assert!(without_consensus.list.is_none(), "there is no list without a consensus");
}

#[test]
fn a_list_is_later_than_the_last_one_even_if_the_clock_is_set_back() {
    let mut world = World::testnet(1);
    let mut last = world.list.as_ref().unwrap().valid_after();
    for now in [later(1), later(2), later(2), NOW.before(Duration::from_secs(60)), later(3), later(9)] {
        // `verify` checks that each list is newer than the last.
        world.settle(now);
        let found = world.list.as_ref().unwrap().valid_after();
        assert!(found > last || world.new_lists == 0);
        last = found;
    }
}

#[test]
fn only_mutual_family_is_listed() {
    let mut world = World::testnet(0);
    let naming = |number, family: &[u16]| Profile { family: ids(family), ..profile(number) };
    world.authority = Authority::new(key(100), AuthorityConfig::testnet(3));
    for (number, family) in [(1, &[VOLUNTEER][..]), (2, &[]), (3, &[])] {
        world.add(number, naming(number, family), NOW);
    }
    world.settle(NOW);
    for (number, family) in
        [(VOLUNTEER, &[VOLUNTEER + 1, 1, 2, VOLUNTEER + 2][..]), (VOLUNTEER + 1, &[VOLUNTEER]), (VOLUNTEER + 2, &[])]
    {
        let profile = VolunteerProfile { family: ids(family), ..volunteer_profile(number) };
        world.register_as(NOW, &volunteer(number, profile, NOW)).unwrap();
    }
    world.report(2, &[VOLUNTEER, VOLUNTEER + 1, VOLUNTEER + 2], NOW).unwrap();
    world.settle(later(1));
    let family =
        |number: u16| world.list.as_ref().unwrap().volunteer(&key(number).id()).unwrap().profile.family.clone();
    let mut mutual = ids(&[1, VOLUNTEER + 1]);
    mutual.sort_unstable();
    assert_eq!(family(VOLUNTEER), mutual);
    assert_eq!(family(VOLUNTEER + 1), ids(&[VOLUNTEER]));
    assert!(family(VOLUNTEER + 2).is_empty());
}

fn id(number: usize) -> RelayId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    RelayId::from_bytes(bytes)
}

#[test]
fn a_flood_of_registrations_does_not_change_the_seed_of_a_registered_volunteer() {
    let mut world = World::testnet(3);
    let (seed, removed_seed) = (world.register(VOLUNTEER, NOW).seed, world.register(VOLUNTEER + 1, NOW).seed);
    for at in (0..100).step_by(10) {
        world.report(1, &[VOLUNTEER], later(at)).unwrap();
        world.settle(later(at));
    }
    assert_eq!(world.authority.volunteers.entries.len(), 1, "the other volunteer is removed");
    for number in 0..MAX_REMOVED_SEEDS {
        let seed = Seed::draw(NOW, &mut world.rng);
        world.authority.volunteers.removed_seeds.insert(id(number), seed);
    }
    assert_eq!(world.register(VOLUNTEER, later(100)).seed, seed);
    assert_ne!(
        world.register(VOLUNTEER + 1, later(100)).seed,
        removed_seed,
        "the seed that was stored first is deleted first"
    );
}

#[test]
fn seeds_of_removed_volunteers_are_stored_once_each_and_capped() {
    let (mut removed, mut rng) = (RemovedSeeds::default(), ChaCha20Rng::seed_from_u64(1));
    for number in (0..=MAX_REMOVED_SEEDS).chain([7; 3]) {
        let seed = removed.take(&id(number)).unwrap_or_else(|| Seed::draw(NOW, &mut rng));
        removed.insert(id(number), seed);
    }
    assert_eq!((removed.seeds.len(), removed.order.len()), (MAX_REMOVED_SEEDS, MAX_REMOVED_SEEDS));
    assert!(removed.take(&id(0)).is_none() && removed.take(&id(1)).is_some());
    assert_eq!((removed.seeds.len(), removed.order.len()), (MAX_REMOVED_SEEDS - 1, MAX_REMOVED_SEEDS - 1));
}
