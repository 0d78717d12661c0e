//! Tests of circuits over layer-2 guards.

use std::collections::BTreeSet;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

/// A network with layer-2 guards, in which the client has built its spare circuits.
fn with_layer_two(seed: u64) -> Net {
    let mut net = Net::new(seed, 2);
    let parameters =
        Parameters::default().with("path.layer-2-guards", 4).unwrap().with("path.layer-2-network", 0).unwrap();
    net.set_parameters(&parameters);
    net.wait(35, |party| (party.built.len() == 2).then_some(()));
    net
}

#[test]
fn circuits_have_four_hops_of_which_the_second_is_a_layer_two_guard() {
    let mut net = with_layer_two(500);
    let layer_two = net.client(|party, _, _| party.client.guards.layer_two());
    assert_eq!(layer_two.len(), 4);
    for isolation in 0..20 {
        let stream = net.connected(isolation);
        let path = net.path_of(stream);
        assert!(path.len() == 4 && layer_two.contains(&path[1]));
        net.client(|party, _, _| assert_eq!(party.client.write(stream, &[7; 5000]), 5000));
        net.wait(5, |party| (party.seen(stream).bytes.len() == 5000).then_some(()));
    }
    net.client(|party, _, _| assert!(party.guards_changed, "the new layer-2 guards are stored"));
}

#[test]
fn after_the_loss_of_a_layer_two_guard_a_new_request_succeeds_over_another_one() {
    for seed in 510..520 {
        let mut net = with_layer_two(seed);
        let layer_two: BTreeSet<_> = net.client(|party, _, _| party.client.guards.layer_two().into_iter().collect());
        let stream = net.connected(1);
        let victim = net.path_of(stream)[1];
        let node = net.relays[&victim];
        net.world.crash(node);
        for isolation in 2..6 {
            let (began, next) = (net.world.now(), net.open(isolation));
            let connected = net.wait(30, |party| party.seen(next).connected);
            assert!(connected.since(began) <= Duration::from_secs(5), "seed {seed}");
            let path = net.path_of(next);
            assert!(!path.contains(&victim) && layer_two.contains(&path[1]), "seed {seed}");
        }
    }
}
