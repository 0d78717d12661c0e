//! Tests of the schedule, by which a turn handles only relays with a due deadline.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use proptest::prelude::*;

use super::*;

/// An input of the authority.
#[derive(Clone, Copy, Debug)]
enum Input {
    /// A descriptor of this relay, at one of the addresses, from one of the publishers.
    Descriptor(u16, u8, u8),
    /// The outcome of the first running dial, and whether it is a success.
    Proof(bool),
    /// Time passes, in seconds.
    Wait(u64),
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        6 => (0..120_u16, 0..40_u8, 0..6_u8).prop_map(|(relay, address, from)| Input::Descriptor(relay, address, from)),
        3 => any::<bool>().prop_map(Input::Proof),
        1 => prop_oneof![Just(5), Just(30), Just(3_600), Just(70_000)].prop_map(Input::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn after_any_inputs_each_relay_is_scheduled_and_no_due_proof_waits_despite_a_place(
        inputs in proptest::collection::vec(input(), 1..300),
        is_capped in any::<bool>(),
    ) {
        let mut authority = authority(AuthorityConfig { private_addresses: !is_capped, ..AuthorityConfig::default() });
        let (mut now, mut dials) = (NOW, VecDeque::new());
        for input in inputs {
            now = now.after(Duration::from_secs(1));
            match input {
                Input::Descriptor(relay, address, from) => {
                    let profile = profile_at(relay, &[&format!("20.0.{}.{address}:1", address / 14)]);
                    let publisher = Publisher::at([90, from / 2, 0, from].into());
                    _ = authority.handle_descriptor(now, &descriptor(relay, profile, now), publisher);
                }
                Input::Proof(succeeds) => {
                    if let Some(target) = dials.pop_front() {
                        authority.handle_proof(now, &target, if succeeds { Ok(()) } else { FAILED });
                    }
                }
                Input::Wait(seconds) => now = now.after(Duration::from_secs(seconds)),
            }
            // A refused descriptor causes no turn.
            authority.handle_timeout(now);
            dials.extend(drain(&mut authority).proofs);
            authority.relays.assert_scheduled(now, MAX_PROOFS);
        }
    }
}
