//! Tests of channels over which volunteers are reached.

use core::net::{IpAddr, Ipv6Addr};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

const VOLUNTEER: u8 = 1;
const GATEWAY: u8 = 2;

fn volunteer() -> Node {
    let mut node = Node::new(LocalRole::Volunteer(key(VOLUNTEER)));
    node.channels.set_gateways(BTreeSet::from([key(GATEWAY).id()]));
    node
}

/// A volunteer and a gateway, with an open channel that the volunteer dialled.
fn volunteer_and_gateway(parameters: ChannelParameters) -> Pair {
    let gateway = Node::with(LocalRole::Relay(key(GATEWAY)), parameters);
    let mut pair = Pair::new(volunteer(), gateway);
    pair.link(1, key(GATEWAY).id());
    pair.settle();
    assert!(pair.a.open().is_some() && pair.b.open().is_some());
    pair
}

fn reported_reach(node: &Node) -> Option<bool> {
    node.events.iter().find_map(|event| match event {
        ChannelEvent::Open { reaches_volunteer, .. } => Some(*reaches_volunteer),
        _ => None,
    })
}

#[test]
fn a_volunteer_is_reached_over_its_dialled_channel_until_the_channel_closes() {
    let mut pair = volunteer_and_gateway(ChannelParameters::default());
    let channel = ChannelId(LinkId(1));
    assert_eq!((reported_reach(&pair.a), reported_reach(&pair.b)), (Some(false), Some(true)));
    assert_eq!(pair.b.channels.volunteers(), [key(VOLUNTEER).id()]);
    assert_eq!(pair.b.channels.channel_to_volunteer(&key(VOLUNTEER).id()), Some(channel));
    assert_eq!(pair.a.channels.channel_to_volunteer(&key(GATEWAY).id()), None, "the listener never requests REACH");
    assert!(pair.a.channels.has_requested_reach(channel));
    pair.b.handle(pair.now, LinkEvent::Closed { link: LinkId(1), reason: LinkClose::ByPeer }, &mut pair.rng);
    assert_eq!(pair.b.channels.volunteers(), []);
    assert_eq!(pair.b.channels.channel_to_volunteer(&key(VOLUNTEER).id()), None);
}

#[test]
fn dialable_relays_and_clients_are_no_volunteers() {
    for role in [LocalRole::Relay(key(VOLUNTEER)), LocalRole::Client] {
        let mut pair = Pair::new(Node::new(role), Node::relay(GATEWAY));
        pair.link(1, key(GATEWAY).id());
        pair.settle();
        assert_eq!(reported_reach(&pair.b), Some(false));
        assert_eq!(pair.b.channels.volunteers(), []);
        assert_eq!(pair.b.channels.channel_to_volunteer(&key(VOLUNTEER).id()), None);
    }
}

#[test]
fn a_volunteer_requests_reach_only_of_its_gateways() {
    let mut pair = Pair::new(volunteer(), Node::relay(3));
    pair.link(1, key(3).id());
    pair.settle();
    assert_eq!(reported_reach(&pair.b), Some(false));
    assert!(!pair.a.channels.has_requested_reach(ChannelId(LinkId(1))));
}

#[test]
fn a_volunteer_is_reached_over_its_newest_channel_and_idle_older_ones_close() {
    let mut pair = volunteer_and_gateway(ChannelParameters { volunteers: 32, ..ChannelParameters::default() });
    pair.advance(Duration::from_secs(30));
    pair.link(2, key(GATEWAY).id());
    pair.settle();
    assert_eq!(pair.b.channels.channel_to_volunteer(&key(VOLUNTEER).id()), Some(ChannelId(LinkId(2))));
    // A third channel exceeds the share of its source, so the channel that reaches the volunteer stays selected.
    pair.advance(Duration::from_secs(30));
    pair.link(3, key(GATEWAY).id());
    pair.settle();
    assert_eq!(pair.b.channels.channel_to_volunteer(&key(VOLUNTEER).id()), Some(ChannelId(LinkId(2))));
    pair.a.channels.keep(ChannelId(LinkId(2)), true);
    pair.advance(Duration::from_secs(1000));
    assert_eq!(pair.b.channels.len(), 1);
    assert_eq!(pair.b.channels.channel_to_volunteer(&key(VOLUNTEER).id()), Some(ChannelId(LinkId(2))));
}

#[test]
fn half_open_channels_count_towards_the_cap_of_volunteers() {
    let parameters = ChannelParameters { volunteers: 1, ..ChannelParameters::default() };
    let mut pair = Pair::new(volunteer(), Node::with(LocalRole::Relay(key(GATEWAY)), parameters));
    for number in 1..=3 {
        pair.link(number, key(GATEWAY).id());
    }
    pair.settle();
    assert_eq!(pair.b.channels.len(), 3);
    let reaching = (1..=3).filter(|number| pair.b.channels.reaches(ChannelId(LinkId(*number)))).count();
    assert_eq!(reaching, 1);
}

#[test]
fn a_volunteer_closes_links_that_other_ends_dialled() {
    let mut pair = Pair::new(Node::relay(GATEWAY), volunteer());
    pair.link(1, key(VOLUNTEER).id());
    pair.settle();
    assert_eq!(pair.b.open(), None);
    assert!(pair.closed.contains(&LinkId(1)));
}

#[test]
fn beyond_its_caps_a_gateway_treats_a_volunteer_as_an_ordinary_relay() {
    let pair = volunteer_and_gateway(ChannelParameters { volunteers: 0, ..ChannelParameters::default() });
    assert_eq!(reported_reach(&pair.b), Some(false));
    assert_eq!(pair.b.channels.volunteers(), []);

    let mut gateway = Gateway::new(16);
    let source = [198, 51, 100, 1].into();
    let [first, second] = [0, 0].map(|_| gateway.join(source));
    assert!(gateway.is_open(first) && gateway.reaches(first));
    assert!(gateway.is_open(second) && !gateway.reaches(second), "a source has a sixteenth");
}

/// A gateway, and the volunteer that has dialled it last.
struct Gateway {
    pair: Pair,
    last_link: u64,
}

impl Gateway {
    fn new(volunteers: usize) -> Self {
        let parameters = ChannelParameters { volunteers, ..ChannelParameters::default() };
        Self { pair: Pair::new(volunteer(), Node::with(LocalRole::Relay(key(GATEWAY)), parameters)), last_link: 0 }
    }

    /// A new volunteer at `address` dials the gateway.
    fn join(&mut self, address: IpAddr) -> ChannelId {
        self.last_link += 1;
        let mut seed = [9; 32];
        seed[..8].copy_from_slice(&self.last_link.to_be_bytes());
        let pair = &mut self.pair;
        pair.a = Node::new(LocalRole::Volunteer(Arc::new(IdentityKey::from_bytes(&seed))));
        pair.a.channels.set_gateways(BTreeSet::from([key(GATEWAY).id()]));
        let link = LinkId(self.last_link);
        let dialled = LinkEvent::Opened { link, opened: opened(Some(key(GATEWAY).id()), 1, 2) };
        pair.a.handle(pair.now, dialled, &mut pair.rng);
        accept_link(&mut pair.b, pair.now, self.last_link, (address, 1).into());
        pair.room(self.last_link, ROOM);
        pair.settle();
        pair.b.channels.assert_sound();
        ChannelId(link)
    }

    fn reaches(&self, channel: ChannelId) -> bool {
        self.pair.b.channels.reaches(channel)
    }

    /// Whether the gateway has not closed a channel.
    fn is_open(&self, channel: ChannelId) -> bool {
        !self.pair.closed.contains(&channel.0)
    }
}

/// Each address has volunteers up to its share, which the directory counts, and another one joins for each that the
/// gateway closes. Asserts that the volunteers of other networks keep their places and get new ones.
fn hold_all_places(addresses: &[IpAddr]) {
    let mut gateway = Gateway::new(128);
    let honest = |number: u8| [203, 0, number, 1].into();
    let mut volunteers: Vec<_> = (0..4).map(|number| gateway.join(honest(number))).collect();
    for number in 4..10 {
        for address in addresses.iter().cycle().take(if number == 4 { 256 } else { 32 }) {
            let channel = gateway.join(*address);
            gateway.pair.b.channels.set_counted(channel, true);
        }
        volunteers.push(gateway.join(honest(number)));
        assert!(volunteers.iter().all(|channel| gateway.reaches(*channel)), "after {number} honest volunteers");
    }
    let all = gateway.pair.b.channels.volunteers().len();
    assert!((32..=128).contains(&all), "{all} volunteers");
}

#[test]
fn volunteers_of_others_keep_and_get_places_while_sixteen_sources_are_at_their_shares() {
    let addresses: Vec<_> = (0..16).map(|number| [198, 51, number % 4, number / 4].into()).collect();
    hold_all_places(&addresses);
}

#[test]
fn volunteers_of_others_keep_and_get_places_while_a_48_is_at_its_share() {
    let address = |subnet| Ipv6Addr::new(0x2001, 0xdb8, 1, subnet, 0, 0, 0, 1).into();
    hold_all_places(&(0..256).map(address).collect::<Vec<_>>());
}

#[test]
fn the_fullest_source_loses_its_oldest_volunteer_that_the_directory_does_not_count() {
    let mut gateway = Gateway::new(64);
    let source = [198, 51, 100, 1].into();
    let of_source = [0; 4].map(|_| gateway.join(source));
    gateway.pair.b.channels.set_counted(of_source[0], true);
    gateway.pair.b.channels.set_counted(of_source[2], true);
    for network in 0..60 {
        gateway.join([203, network, 0, 1].into());
    }
    let order = [of_source[1], of_source[3], of_source[0]];
    for (network, lost) in (60..).zip(order) {
        assert!(gateway.is_open(lost));
        let joined = gateway.join([203, network, 0, 1].into());
        assert!(gateway.reaches(joined) && !gateway.is_open(lost));
    }
    let lost = gateway.join([203, 0, 0, 1].into());
    assert!(gateway.is_open(lost) && !gateway.reaches(lost), "no source is fuller");
}

#[test]
fn an_idle_channel_stays_while_both_ends_keep_it() {
    let mut pair = volunteer_and_gateway(ChannelParameters::default());
    let channel = ChannelId(LinkId(1));
    pair.a.channels.keep(channel, true);
    pair.advance(Duration::from_secs(3600));
    assert_eq!((pair.a.channels.len(), pair.b.channels.len()), (1, 1));
    pair.a.channels.keep(channel, false);
    pair.advance(Duration::from_secs(200));
    assert_eq!(
        (pair.a.channels.len(), pair.b.channels.len()),
        (0, 0),
        "a channel closes once its volunteer no longer keeps it"
    );
}

#[test]
fn at_the_cap_of_channels_those_of_volunteers_stay_open() {
    let mut pair = volunteer_and_gateway(ChannelParameters { channels: 32, ..ChannelParameters::default() });
    // The second channel of the volunteer's source makes it the fullest.
    for (number, source) in (2..).zip([9, 9].into_iter().chain(20..60)) {
        pair.now = pair.now.after(Duration::from_secs(1));
        let network = if source == 9 { 2 } else { source };
        accept_link(&mut pair.b, pair.now, number, ([192, 0, network, source], 1).into());
    }
    assert_eq!(pair.b.channels.volunteers(), [key(VOLUNTEER).id()]);
    assert!(closed(&pair.b).contains(&LinkId(2)));
}

#[test]
fn a_volunteer_is_reached_over_a_retiring_channel_until_it_has_dialled_another() {
    let mut pair = volunteer_and_gateway(ChannelParameters::default());
    pair.advance(Duration::from_secs(30));
    let volunteer = key(VOLUNTEER).id();
    pair.a.channels.keep(ChannelId(LinkId(1)), true);
    for node in [&mut pair.a, &mut pair.b] {
        node.handle(pair.now, LinkEvent::Retire { link: LinkId(1) }, &mut pair.rng);
    }
    pair.advance(Duration::from_secs(30));
    assert_eq!(pair.b.channels.channel_to_volunteer(&volunteer), Some(ChannelId(LinkId(1))));
    assert_eq!(pair.b.channels.volunteers(), [volunteer]);
    assert_eq!(pair.a.channels.lookup(&key(GATEWAY).id()), None, "the volunteer dials the gateway again");
    pair.link(2, key(GATEWAY).id());
    pair.settle();
    assert_eq!(pair.b.channels.channel_to_volunteer(&volunteer), Some(ChannelId(LinkId(2))));
    pair.advance(Duration::from_secs(2));
    assert_eq!(pair.closed, BTreeSet::from([LinkId(1)]));
}
