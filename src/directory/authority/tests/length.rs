//! Tests of the length of a consensus.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::delegated::{HttpOffer, Offer};

/// Inserts a proved relay with this profile, known for `age`.
fn insert(authority: &mut Authority, profile: Profile, age: u64) {
    let known_since = NOW.before(Duration::from_secs(age));
    let mut entry = RelayEntry::new(crate::directory::Descriptor { profile, published: NOW }, &[], known_since);
    entry.handle_proved(NOW, Duration::from_secs(3600));
    entry.set_known_since(known_since);
    authority.relays.insert(entry);
}

#[test]
fn a_consensus_that_would_be_too_long_omits_the_relays_known_shortest_of_many_equal_blocks() {
    let mut authority = public_authority();
    let all = MAX_RELAYS as u16;
    let ports: Vec<String> = (0..60).map(|port| format!("accept {}", 1000 + 2 * port)).collect();
    let exit = exit_profile(1, &ports.iter().map(String::as_str).collect::<Vec<_>>()).exit;
    for number in 1..=all {
        let long = |text: &str| text.repeat(256);
        let (ice_ufrag, ice_password) = (long("u"), long("p"));
        let profile = Profile { ice_ufrag, ice_password, exit: exit.clone(), ..profile(number) };
        insert(&mut authority, profile, u64::from(all - number));
    }
    authority.handle_timeout(NOW);
    let consensus = published(&mut authority, NOW).unwrap();
    let listed = consensus.relays().len() as u16;
    assert!((1000..all).contains(&listed), "{listed}");
    assert!(
        (1..=listed).all(|number| consensus.relay(&key(number).id()).is_some()),
        "the relays known for longest stay"
    );
}

#[test]
fn long_entries_of_old_relays_in_four_blocks_displace_no_younger_relay() {
    let mut authority = public_authority();
    let host = |number: usize| format!("{number:02}{}", "h".repeat(248));
    let long = Offer { requests: HttpOffer::Hosts((0..64).map(host).collect()), ..Offer::default() };
    // As many relays as the caps on listed relays admit: 4 at an address, 16 in a network, 128 in a block.
    for number in 0..512 {
        let address = format!("90.{}.{}.{}:{}", number / 128, number / 16 % 8, number / 4 % 4, 1 + number % 4);
        insert(&mut authority, Profile { offer: long.clone(), ..profile_at(number + 1, &[&address]) }, 1_000_000);
    }
    // Younger relays in other blocks. Relay 1,000 has a long entry too.
    for number in 1000..1500 {
        let offer = if number == 1000 { long.clone() } else { Offer::default() };
        insert(&mut authority, Profile { offer, ..profile(number) }, 10);
    }
    authority.handle_timeout(NOW);
    let consensus = published(&mut authority, NOW).unwrap();
    let listed = |number| consensus.relay(&key(number).id()).is_some();
    assert!((1000..1500).all(listed), "{} relays", consensus.relays().len());
    let of_attacker = (1..=512).filter(|number| listed(*number)).count();
    assert!((450..512).contains(&of_attacker), "a few of the long entries are omitted: {of_attacker}");
}
