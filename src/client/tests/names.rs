//! Tests of private and reserved names, which are sent to no exit.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::{base::ErrorClass, exit_policy::Policy};

const PRIVATE: [&str; 8] =
    ["printer", "nas.local", "localhost", "wiki.corp", "box.lan", "x.home.arpa", "10.0.0.1", "fe80::1"];
const RESERVED: [&str; 4] = ["abcdefgh.onion", "Abc.ONION.", "x.invalid", "x.alt"];

impl Net {
    /// Requests a stream, a RESOLVE and a delegated request for `host`.
    fn request_all_for(&mut self, host: &str) -> [ClientStream; 3] {
        let parsed = Host::parse(host).unwrap();
        let (target, host) = (Target { host: parsed.clone(), port: 443 }, host.to_ascii_lowercase());
        self.client(|party, now, _| {
            let isolation = Isolation([1; 32]);
            [
                party.client.open(now, target, isolation),
                party.client.resolve(now, parsed, isolation),
                party.client.delegate(now, Delegation::Http { host }, Vec::new(), isolation),
            ]
        })
    }

    /// A network with two exits, of which the first `number` connect to no private address.
    fn without_private_targets(seed: u64, number: usize) -> Self {
        let mut net = Self::new(seed, 2);
        for relay in &mut net.listed[..number] {
            relay.profile.exit = Policy::parse(["accept 443"], false).unwrap().summary();
        }
        net
    }
}

#[test]
fn private_and_reserved_names_are_sent_to_no_exit() {
    let mut net = Net::without_private_targets(61, 2);
    net.give_consensus(NOW);
    net.connected(1);
    for host in PRIVATE.into_iter().chain(RESERVED) {
        for stream in net.request_all_for(host) {
            // The request fails within its turn, before a cell is sent.
            net.client(|party, now, _| {
                party.work(now);
                assert_eq!(party.seen(stream).closed, Some(StreamFailure::NotPublic), "{host}");
                assert_eq!(party.client.placement.len(), 1, "the open stream");
            });
        }
    }
    assert_eq!(StreamFailure::NotPublic.class(), ErrorClass::Local);
}

#[test]
fn names_requested_before_the_consensus_are_checked_against_it() {
    let mut net = Net::without_private_targets(62, 2);
    let streams: Vec<_> = PRIVATE.into_iter().flat_map(|host| net.request_all_for(host)).collect();
    net.pass(1);
    net.client(|party, _, _| assert_eq!(party.client.placement.len(), streams.len()));
    net.give_consensus(NOW);
    for stream in streams {
        assert_eq!(net.closed(stream, 5), StreamFailure::NotPublic);
    }
}

#[test]
fn private_names_are_sent_if_all_exits_connect_to_private_addresses() {
    let mut net = Net::new(63, 2);
    net.give_consensus(NOW);
    for host in PRIVATE.into_iter().filter(|host| !host.contains(':')) {
        let [stream, resolve, _] = net.request_all_for(host);
        net.wait(10, |party| party.seen(stream).connected.map(|_| ()));
        net.wait(10, |party| (!party.seen(resolve).answers.is_empty()).then_some(()));
    }
    for host in RESERVED {
        let [stream, ..] = net.request_all_for(host);
        assert_eq!(net.closed(stream, 5), StreamFailure::NotPublic);
    }
    // If only some exits connect to private addresses, private names are refused.
    let mut net = Net::without_private_targets(64, 1);
    net.give_consensus(NOW);
    let [stream, ..] = net.request_all_for("printer");
    assert_eq!(net.closed(stream, 5), StreamFailure::NotPublic);
}

#[test]
fn a_refused_name_is_sent_to_at_most_two_exits() {
    let (mut net, stream) = Net::refusing(65, 4, EndReason::Policy);
    assert_eq!(net.closed(stream, 10), StreamFailure::Ended(EndReason::Policy));
    let nodes = net.relays.values().copied().collect::<Vec<_>>();
    let begun = nodes.into_iter().filter_map(|node| net.relay(node, |party| party.begun));
    assert_eq!(begun.sum::<usize>(), 2);
}
