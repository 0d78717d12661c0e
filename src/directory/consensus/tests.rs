use proptest::prelude::*;
use prost::Message as _;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::{
    base::WallTime,
    directory::{
        AuthorityId, CLOCK_SKEW, NotCounted,
        bounded::BoundError,
        counting::MAX_SIGNATURES,
        fixture::{FRESH, NOW, VALID, consensus_at, key, listed, profile, signed_by},
    },
};

fn authorities(numbers: &[u16]) -> Vec<AuthorityId> {
    numbers.iter().map(|number| key(*number).id().into()).collect()
}

fn verify(signed: &SignedConsensus, by: &[u16], now: WallTime) -> Result<Consensus, DocumentError> {
    UnverifiedConsensus::decode(signed.as_bytes())?.verify(&authorities(by), now, None)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_verified_consensus_equals_the_signed_one() {
    let parameters = Parameters::default().with("flow.largest-window", 600).unwrap();
    let (expected, encoded) = consensus_at(NOW, (1..=3).map(|number| listed(profile(number))), &parameters);
    let found = verify(&Consensus::sign(encoded, [&key(100)]), &[100], NOW).unwrap();
    assert_eq!(found, expected);
    assert_eq!(found.parameters().largest_window(), 600);
    let relay = found.relay(&key(2).id()).unwrap();
    assert_eq!(relay.dial_target().fingerprint, [2; 32]);
    assert_eq!(relay.keys().onion_key.0, [2; 32]);
    assert!(found.relay(&key(4).id()).is_none());
}

#[test]
fn more_than_half_of_the_configured_authorities_must_have_signed() {
    for (signed, configured, counts) in [
        (&[100][..], &[100][..], true),
        (&[100], &[100, 101], false),
        (&[100, 101], &[100, 101], true),
        (&[100], &[100, 101, 102], false),
        (&[100, 102], &[100, 101, 102], true),
        (&[100, 101], &[100, 101, 102, 103], false),
        (&[100, 101, 103], &[100, 101, 102, 103], true),
        (&[], &[100], false),
        (&[101, 102, 103], &[100], false),
    ] {
        let outcome = verify(&signed_by(signed, NOW), configured, NOW);
        assert_eq!(outcome.is_ok(), counts, "{signed:?} of {configured:?}");
        if !counts {
            assert!(
                matches!(outcome, Err(DocumentError::NotCounted(NotCounted::TooFewSignatures { .. }))),
                "{outcome:?}"
            );
        }
    }
    assert_eq!(verify(&signed_by(&[100], NOW), &[], NOW), Err(DocumentError::NotCounted(NotCounted::NoAuthorities)));
}

#[test]
fn repeated_signatures_and_configured_keys_count_once() {
    let three_times = signed_by(&[100, 100, 100], NOW);
    assert_eq!(
        verify(&three_times, &[100, 101, 102], NOW),
        Err(DocumentError::NotCounted(NotCounted::TooFewSignatures { signed: 1, configured: 3 }))
    );
    assert_eq!(
        verify(&three_times, &[100, 100, 101], NOW),
        Err(DocumentError::NotCounted(NotCounted::TooFewSignatures { signed: 1, configured: 2 }))
    );
}

#[test]
fn signatures_over_other_bytes_do_not_count() {
    let signed = |at| schema::SignedConsensus::decode(signed_by(&[100], at).as_bytes()).unwrap();
    let mixed = schema::SignedConsensus { consensus: signed(NOW.after(seconds(1))).consensus, ..signed(NOW) };
    let mixed = SignedConsensus::from_bytes(mixed.encode_to_vec());
    assert_eq!(
        verify(&mixed, &[100], NOW),
        Err(DocumentError::NotCounted(NotCounted::TooFewSignatures { signed: 0, configured: 1 }))
    );
}

#[test]
fn an_expired_consensus_and_a_future_one_are_refused_with_different_reasons() {
    let signed = signed_by(&[100], NOW);
    assert!(verify(&signed, &[100], NOW.before(CLOCK_SKEW)).is_ok());
    let early = NOW.before(CLOCK_SKEW + seconds(1));
    assert_eq!(verify(&signed, &[100], early), Err(DocumentError::NotCounted(NotCounted::NotYetValid)));
    assert!(verify(&signed, &[100], NOW.after(seconds(VALID - 1))).is_ok());
    assert_eq!(verify(&signed, &[100], NOW.after(seconds(VALID))), Err(DocumentError::NotCounted(NotCounted::Expired)));
}

#[test]
fn an_older_consensus_never_replaces_a_newer_one() {
    let previous = verify(&signed_by(&[100], NOW), &[100], NOW).unwrap();
    let against_previous = |signed: &SignedConsensus| {
        UnverifiedConsensus::decode(signed.as_bytes()).unwrap().verify(&authorities(&[100]), NOW, Some(&previous))
    };
    assert_eq!(
        against_previous(&signed_by(&[100], NOW.before(seconds(1)))),
        Err(DocumentError::NotCounted(NotCounted::Older))
    );
    assert_eq!(against_previous(&signed_by(&[100], NOW)), Ok(previous.clone()));
    assert!(against_previous(&signed_by(&[100], NOW.after(seconds(1)))).is_ok());
    let (_, other) = consensus_at(NOW, [listed(profile(9))], &Parameters::default());
    let other = Consensus::sign(other, [&key(100)]);
    assert_eq!(against_previous(&other), Err(DocumentError::NotCounted(NotCounted::Conflicting)));
}

#[test]
fn a_signed_consensus_with_invalid_content_is_refused() {
    let refused = |change: &dyn Fn(&mut schema::Consensus)| {
        let (_, encoded) = consensus_at(NOW, (1..=3).map(|number| listed(profile(number))), &Parameters::default());
        let mut document = schema::Consensus::decode(encoded.as_slice()).unwrap();
        change(&mut document);
        verify(&Consensus::sign(document.encode_to_vec(), [&key(100)]), &[100], NOW).unwrap_err()
    };
    assert!(matches!(refused(&|it| it.relays.reverse()), DocumentError::Impossible(_)));
    assert!(matches!(refused(&|it| it.relays[1] = it.relays[0].clone()), DocumentError::Impossible(_)));
    assert!(matches!(refused(&|it| it.relays[1].profile = None), DocumentError::Impossible(_)));
    assert!(matches!(refused(&|it| it.valid_until = it.valid_after), DocumentError::Impossible(_)));
    assert!(matches!(refused(&|it| it.fresh_until = it.valid_after - 1), DocumentError::Impossible(_)));
    assert!(matches!(refused(&|it| it.valid_until += 7 * 86_400), DocumentError::Impossible(_)));
    let parameter = schema::Parameter { name: "B".into(), value: 1 };
    assert!(matches!(refused(&|it| it.parameters = vec![parameter.clone()]), DocumentError::Parameter(_)));
    let empty_validity = Dates { valid_after: NOW, fresh_until: NOW, valid_until: NOW };
    assert!(Consensus::new(&empty_validity, &ConsensusBody::new(Parameters::default(), [])).is_err());
}

#[test]
fn too_many_empty_elements_are_refused_before_decoding() {
    let relays = [0x2a, 0].repeat(MAX_RELAYS + 1);
    let flood = Consensus::sign(relays, [&key(100)]);
    assert_eq!(verify(&flood, &[100], NOW), Err(DocumentError::Malformed(BoundError::TooMany(MAX_RELAYS))));
    let signatures = SignedConsensus::from_bytes([0x12, 0].repeat(65));
    assert_eq!(verify(&signatures, &[100], NOW), Err(DocumentError::Malformed(BoundError::TooMany(MAX_SIGNATURES))));
    let long = SignedConsensus::from_bytes(vec![0; MAX_CONSENSUS_LEN + 1]);
    assert_eq!(verify(&long, &[100], NOW), Err(DocumentError::Malformed(BoundError::TooLong(MAX_CONSENSUS_LEN))));
}

#[test]
fn relays_of_the_current_and_the_previous_consensus_are_known() {
    let of = |at: u64, numbers: &[u16]| {
        let relays = numbers.iter().map(|number| listed(profile(*number)));
        Arc::new(consensus_at(NOW.after(seconds(at)), relays, &Parameters::default()).0)
    };
    let mut known = KnownRelays::default();
    assert!(known.relay(&key(1).id()).is_none());
    known.update(of(0, &[1, 2]));
    known.update(of(FRESH, &[2, 3]));
    known.update(of(FRESH, &[2, 3]));
    for number in [1, 2, 3] {
        assert!(known.relay(&key(number).id()).is_some(), "{number}");
    }
    known.update(of(2 * FRESH, &[3]));
    assert!(known.relay(&key(1).id()).is_none());
    assert!(known.relay(&key(2).id()).is_some());
}

proptest! {
    #[test]
    fn the_decoder_does_not_panic_on_any_input(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = verify(&SignedConsensus::from_bytes(bytes.clone()), &[100], NOW);
        let _ = verify(&Consensus::sign(bytes, [&key(100)]), &[100], NOW);
    }

    #[test]
    fn a_consensus_with_one_changed_bit_is_refused(position in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = signed_by(&[100], NOW).into_bytes();
        let position = position.index(bytes.len());
        bytes[position] ^= 1 << bit;
        prop_assert!(verify(&SignedConsensus::from_bytes(bytes), &[100], NOW).is_err());
    }
}
