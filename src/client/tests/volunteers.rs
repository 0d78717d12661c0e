//! Tests of circuits over volunteers that join and leave.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::{
    base::HopIndex,
    directory::{Registration, Volunteer, fixture, gateway_ranking},
    relay::Reach,
};

/// The number of the first volunteer.
const FIRST: u16 = 100;

impl Net {
    /// Adds a volunteer to the network, and returns its node and its entry for the list.
    fn volunteer(&mut self, number: u16, engines: Vec<EngineName>) -> (NodeId, Volunteer) {
        let address = format!("10.9.8.{}:1", number - FIRST + 1).parse().unwrap();
        let node = self.world.add_node(address, false);
        let keyring = OnionKeyring::new(OnionSecret::generate(self.world.rng()), None);
        let delegate = !engines.is_empty();
        let parameters = RelayParameters { reach: Reach::Gateways, delegate, ..RelayParameters::default() };
        let mut relay = Relay::new(Arc::new(key(number)), keyring, parameters);
        let consensus = self.consensus();
        let seed = [u8::try_from(number - FIRST).unwrap(); 32];
        relay.set_consensus(Arc::clone(&consensus));
        relay.handle_registration(Instant::START, &Registration { seed, gateways: Vec::new() });
        let mut profile = fixture::volunteer_profile(number);
        profile.onion_key = relay.onion_key();
        profile.offer.engines = engines;
        let gateways = gateway_ranking(&seed, &profile.identity, &consensus)[..3].to_vec();
        let open = BTreeMap::new();
        let party = RelayParty { relay, behaviour: ExitBehaviour::Echo, open, begun: 0, received: Vec::new() };
        self.world.place(node, Party::Relay(Box::new(party)));
        self.world.with(node, |_, _, _| ());
        (node, Volunteer { profile, gateways })
    }

    /// Adds `count` volunteers, and waits for their channels to gateways.
    fn volunteers(&mut self, count: u16) -> Vec<(NodeId, Volunteer)> {
        let joined = (FIRST..FIRST + count).map(|number| self.volunteer(number, Vec::new())).collect();
        self.pass(2);
        joined
    }

    fn list(&mut self, volunteers: impl IntoIterator<Item = Volunteer>) {
        let list = Arc::new(fixture::volunteers(volunteers));
        self.client(|party, now, _| party.client.set_volunteers(now, NOW, list));
    }

    /// The middle of a circuit under each of `isolations`.
    fn middles(&mut self, isolations: core::ops::Range<u8>) -> Vec<RelayId> {
        let middle = |isolation| {
            let stream = self.connected(isolation);
            self.path_of(stream)[1]
        };
        isolations.map(middle).collect()
    }
}

/// Sets the parameter `path.volunteer-share` of the client's consensus.
fn with_share(mut net: Net, percent: u64) -> Net {
    net.set_parameters(&Parameters::default().with("path.volunteer-share", percent).unwrap());
    net
}

/// A number of volunteers with which every relay of the consensus is the gateway of a volunteer.
const MANY: u16 = 16;

#[test]
fn the_share_of_volunteers_among_middles_follows_the_consensus() {
    // About seven of sixteen volunteers are behind the guard, and four relays may be the middle.
    for (percent, expected) in [(0, 0..=0), (30, 3..=22), (100, 16..=38)] {
        let mut net = with_share(Net::new(40, 2), percent);
        let joined = net.volunteers(MANY);
        net.list(joined.iter().map(|(_, volunteer)| volunteer.clone()));
        let middles = net.middles(0..40);
        let through_volunteers =
            middles.iter().filter(|middle| joined.iter().any(|(_, it)| it.identity() == **middle)).count();
        assert!(expected.contains(&through_volunteers), "{through_volunteers} of 40 at {percent} %");
    }
}

#[test]
fn a_volunteer_follows_one_of_its_gateways_and_carries_bytes() {
    let mut net = with_share(Net::new(41, 2), 100);
    let joined = net.volunteers(MANY);
    net.list(joined.iter().map(|(_, volunteer)| volunteer.clone()));
    for isolation in 0..10 {
        let stream = net.connected(isolation);
        let path = net.path_of(stream);
        if let Some((_, volunteer)) = joined.iter().find(|(_, it)| it.identity() == path[1]) {
            assert!(volunteer.gateways.contains(&path[0]));
        }
        net.client(|party, _, _| assert_eq!(party.client.write(stream, &[7; 5000]), 5000));
        net.wait(5, |party| (party.seen(stream).bytes.len() == 5000).then_some(()));
    }
}

#[test]
fn requests_connect_without_a_timeout_while_most_listed_volunteers_are_gone() {
    for seed in 300..320 {
        let mut net = with_share(Net::new(seed, 2), 100);
        let joined = net.volunteers(MANY);
        net.list(joined.iter().map(|(_, volunteer)| volunteer.clone()));
        // Two thirds of the volunteers crash; the client's list still has them.
        for (node, _) in joined.iter().skip(5) {
            net.world.crash(*node);
        }
        net.pass(5);
        for isolation in 0..10 {
            let (began, stream) = (net.world.now(), net.open(isolation));
            let connected = net.wait(5, |party| party.seen(stream).connected);
            let elapsed = connected.since(began);
            assert!(elapsed < Duration::from_millis(500), "{elapsed:?} is as long as a timeout; seed {seed}");
        }
    }
}

#[test]
fn a_request_succeeds_before_the_gateways_detect_the_loss_of_volunteers() {
    for seed in 320..330 {
        let mut net = with_share(Net::new(seed, 2), 100);
        let joined = net.volunteers(MANY);
        net.list(joined.iter().map(|(_, volunteer)| volunteer.clone()));
        for (node, _) in &joined {
            net.world.crash(*node);
        }
        let (began, stream) = (net.world.now(), net.open(1));
        let connected = net.wait(30, |party| party.seen(stream).connected);
        assert!(connected.since(began) < Duration::from_secs(10), "seed {seed}");
    }
}

#[test]
fn an_expired_list_of_volunteers_is_not_used() {
    let mut net = with_share(Net::new(42, 2), 100);
    let joined = net.volunteers(MANY);
    net.list(joined.iter().map(|(_, volunteer)| volunteer.clone()));
    net.pass(fixture::LIST_VALID);
    let circuits: Vec<_> = net.client(|party, _, _| party.client.pool.circuits().map(|(key, _)| key).collect());
    net.client(|party, _, _| circuits.iter().for_each(|circuit| party.client.pool.close(*circuit)));
    net.pass(1);
    let middles = net.middles(0..10);
    assert!(!middles.iter().any(|middle| joined.iter().any(|(_, it)| it.identity() == *middle)));
}

#[test]
fn a_guard_that_reports_every_volunteer_as_gone_gets_listed_middles() {
    let mut net = with_share(Net::new(43, 2), 100);
    // These volunteers are listed but unreachable.
    let listed = (FIRST..FIRST + MANY).map(|number| {
        let gateways: Vec<u16> = (1..=RELAYS).collect();
        fixture::listed_volunteer(number, &gateways[usize::from(number) % 5..][..3])
    });
    let listed: Vec<_> = listed.collect();
    net.list(listed);
    for isolation in 0..20 {
        let stream = net.connected(isolation);
        let middle = net.path_of(stream)[1];
        assert!(net.relays.contains_key(&middle));
    }
    let now = net.world.now();
    let guards = net.client(|party, _, _| party.client.pool.gateways_without_volunteers(now));
    assert_eq!(guards.len(), 1, "the guard has no volunteers behind it");
}

#[test]
fn layer_two_guards_that_report_every_volunteer_as_gone_get_listed_middles() {
    let mut net = Net::new(48, 2);
    let parameters = Parameters::default().with("path.volunteer-share", 100).unwrap();
    net.set_parameters(&parameters.with("path.layer-2-guards", 2).unwrap().with("path.layer-2-network", 0).unwrap());
    // These volunteers are listed but unreachable.
    let listed = (FIRST..FIRST + MANY).map(|number| {
        let gateways: Vec<u16> = (1..=RELAYS).collect();
        fixture::listed_volunteer(number, &gateways[usize::from(number) % 5..][..3])
    });
    let listed: Vec<_> = listed.collect();
    net.list(listed);
    let guard = net.client(|party, _, _| party.built.first().map(|path| path[0]));
    for isolation in 0..40 {
        let stream = net.connected(isolation);
        let path = net.path_of(stream);
        assert!(path.len() == 4 && path.iter().all(|relay| net.relays.contains_key(relay)));
    }
    let now = net.world.now();
    let gateways = net.client(|party, _, _| party.client.pool.gateways_without_volunteers(now));
    let layer_two = net.client(|party, _, _| party.client.guards.layer_two());
    assert!(!gateways.is_empty() && gateways.iter().all(|gateway| layer_two.contains(gateway)));
    assert!(guard.is_none_or(|guard| !gateways.contains(&guard)), "the guard itself reported nothing");
}

#[test]
fn gone_is_invalid_for_a_listed_middle_and_at_the_third_time() {
    for (gone, is_volunteer, continues) in [(0, false, false), (2, true, false), (1, true, true), (0, true, true)] {
        let mut net = with_share(Net::new(46, 2), 0);
        net.pass(1);
        let key = net.building();
        net.client(|party, now, rng| {
            party.client.pool.circuit_mut(key).unwrap().set_gone(gone, is_volunteer);
            let (pool, _, inputs) = party.client.parts(now).unwrap();
            pool.handle_gone(now, key, HopIndex::new(2).unwrap(), &inputs, rng);
            let is_building = pool.circuit(key).unwrap().is_building();
            assert_eq!(is_building, continues, "{gone} before, volunteer: {is_volunteer}");
        });
    }
}

#[test]
fn gone_reports_of_listed_relays_do_not_count_against_a_guard() {
    let mut net = with_share(Net::new(47, 2), 0);
    net.pass(1);
    let key = net.building();
    net.client(|party, now, rng| {
        let (pool, _, inputs) = party.client.parts(now).unwrap();
        for _ in 0..20 {
            pool.handle_gone(now, key, HopIndex::new(2).unwrap(), &inputs, rng);
        }
        assert_eq!(pool.gateways_without_volunteers(now), []);
    });
}

#[test]
fn a_client_with_a_fixed_middle_builds_no_circuit_without_it() {
    let mut net = Net::new(44, 2);
    let joined = net.volunteers(2);
    let (node, volunteer) = joined[0].clone();
    net.client(|party, _, _| party.client.parameters.middle = Some(volunteer.identity()));
    net.list(joined.into_iter().map(|(_, volunteer)| volunteer));
    net.give_consensus(NOW);
    assert!(net.middles(0..5).iter().all(|middle| *middle == volunteer.identity()));
    net.world.crash(node);
    net.pass(10);
    let stream = net.open(9);
    net.closed(stream, 60);
}

#[test]
fn a_volunteer_performs_searches_behind_one_of_its_gateways() {
    let other = EngineName::parse("other").unwrap();
    let mut net = Net::new(45, 2);
    let joined: Vec<_> = (FIRST..FIRST + 3).map(|number| net.volunteer(number, vec![other.clone()]).1).collect();
    net.pass(2);
    net.list(joined.clone());
    net.give_consensus(NOW);
    for isolation in 0..6 {
        let stream = net.client(|party, now, _| {
            let delegation = Delegation::Search(other.clone());
            party.client.delegate(now, delegation, Vec::new(), Isolation([isolation; 32]))
        });
        let (path, _) = net.wait(5, |party| party.seen(stream).delegated.clone());
        let exit = joined.iter().find(|volunteer| volunteer.identity() == path[2]).expect("a volunteer");
        assert!(exit.gateways.contains(&path[1]));
        net.client(|party, _, _| assert_eq!(party.client.write(stream, b"query"), 5));
        net.wait(5, |party| (party.seen(stream).bytes == b"query").then_some(()));
    }
}
