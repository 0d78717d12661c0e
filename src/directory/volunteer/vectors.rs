//! Test vectors of `proto/vectors/volunteers.json`, which the reference implementation generates.

use core::fmt::Display;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use serde_json::Value;

use super::*;
use crate::{
    base::WallTime,
    crypto::vectors,
    directory::{
        AuthorityId, ConsensusRelay,
        fixture::{consensus, listed, profile},
    },
};

fn cases(section: &str) -> Vec<Value> {
    let file = vectors::read(include_str!("../../../proto/vectors/volunteers.json"));
    vectors::cases(&file, section).to_vec()
}

fn identity(value: &Value) -> RelayId {
    decode_identity(&vectors::bytes(value)).unwrap()
}

fn identities(value: &Value) -> Vec<RelayId> {
    value.as_array().unwrap().iter().map(identity).collect()
}

fn now(case: &Value) -> WallTime {
    WallTime::from_unix(case["now"].as_u64().unwrap())
}

fn assert_outcome<T, E: Display>(case: &Value, outcome: Result<T, E>) {
    let found = outcome.map_or_else(|error| error.to_string(), |_| "counts".to_owned());
    assert!(found.contains(case["outcome"].as_str().unwrap()), "{}: {found}", case["name"]);
}

#[test]
fn rankings_equal_those_of_the_reference() {
    for case in cases("rankings") {
        let guard = |identity| {
            let relay = listed(profile(1));
            ConsensusRelay { profile: crate::directory::Profile { identity, ..relay.profile }, ..relay }
        };
        let guards = consensus(identities(&case["guards"]).into_iter().map(guard));
        let seed = vectors::bytes(&case["seed"]).try_into().unwrap();
        let found = gateway_ranking(&seed, &identity(&case["volunteer"]), &guards);
        assert_eq!(found, identities(&case["ranking"]));
    }
}

#[test]
fn outcomes_of_descriptors_equal_those_of_the_reference() {
    for case in cases("descriptors") {
        let verify = |bytes: &[u8]| UnverifiedVolunteer::decode(bytes)?.verify(now(&case));
        assert_outcome(&case, verify(&vectors::bytes(&case["signed"])));
    }
}

#[test]
fn registrations_equal_those_of_the_reference() {
    for case in cases("registrations") {
        let expected = Registration {
            seed: vectors::bytes(&case["seed"]).try_into().unwrap(),
            gateways: identities(&case["gateways"]),
        };
        assert_eq!(expected.encode(), vectors::bytes(&case["encoded"]));
        assert_eq!(Registration::decode(&vectors::bytes(&case["encoded"])), Ok(expected));
    }
}

#[test]
fn outcomes_of_presences_equal_those_of_the_reference() {
    for case in cases("presences") {
        let expected = Presence {
            gateway: identity(&case["gateway"]),
            at_ms: case["at_ms"].as_u64().unwrap(),
            volunteers: identities(&case["volunteers"]),
        };
        let verify = |bytes: &[u8]| UnverifiedPresence::decode(bytes)?.verify(now(&case));
        let outcome = verify(&vectors::bytes(&case["signed"]));
        assert!(outcome.as_ref().is_err() || outcome == Ok(expected));
        assert_outcome(&case, outcome);
    }
}

#[test]
fn outcomes_of_lists_equal_those_of_the_reference() {
    for case in cases("lists") {
        let authorities: Vec<AuthorityId> = identities(&case["authorities"]).into_iter().map(Into::into).collect();
        let in_use = case["in_use"].as_str().map(|_| {
            let in_use = UnverifiedVolunteerList::decode(&vectors::bytes(&case["in_use"])).unwrap();
            in_use.verify(&authorities, now(&case), None).unwrap()
        });
        let verify =
            |bytes: &[u8]| UnverifiedVolunteerList::decode(bytes)?.verify(&authorities, now(&case), in_use.as_ref());
        assert_outcome(&case, verify(&vectors::bytes(&case["signed"])));
    }
}
