//! Tests of the caps on channels against sources that are at their shares.

use core::net::{IpAddr, Ipv6Addr};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::{hello::ChannelHello, *};

/// A relay that accepts links.
struct Listener {
    node: Node,
    now: Instant,
    last_link: u64,
}

impl Listener {
    fn new(parameters: ChannelParameters) -> Self {
        Self { node: Node::with(LocalRole::Relay(key(2)), parameters), now: Instant::START, last_link: 0 }
    }

    /// Opens a link from `address`. Returns its channel, which may have closed.
    fn link(&mut self, address: IpAddr) -> ChannelId {
        self.last_link += 1;
        self.now = self.now.after(Duration::from_millis(1));
        accept_link(&mut self.node, self.now, self.last_link, (address, 1).into());
        ChannelId(LinkId(self.last_link))
    }

    /// Opens a channel from a client at `address`, and `circuits` circuits on it. Returns the channel, which may have
    /// closed.
    fn client(&mut self, address: IpAddr, circuits: u32) -> ChannelId {
        let channel = self.link(address);
        let hello = ChannelHello { versions: vec![1], capabilities: 0, identity: None, nonce: [1; 32], observed: None };
        let event = LinkEvent::Message { link: channel.0, lane: Lane::FIRST, message: hello.encode().into() };
        self.node.handle(self.now, event, &mut ChaCha20Rng::seed_from_u64(self.last_link));
        for number in 1..=circuits {
            self.node.channels.admit_circuit(channel, circuit(0x8000_0000 + number));
        }
        channel
    }

    /// Whether a channel is open.
    fn is_open(&self, channel: ChannelId) -> bool {
        let opened = |event: &ChannelEvent| matches!(event, ChannelEvent::Open { channel: id, .. } if *id == channel);
        let closed = |event: &ChannelEvent| matches!(event, ChannelEvent::Closed { channel: id } if *id == channel);
        self.node.events.iter().any(opened) && !self.node.events.iter().any(closed)
    }
}

/// Sixteen sources in four networks, each in a block of its own.
fn sixteen_sources() -> Vec<IpAddr> {
    (0..16).map(|number| [198, 51 + number % 4, 0, number / 4].into()).collect()
}

/// 256 sources in one network.
fn one_48() -> Vec<IpAddr> {
    (0..256).map(|subnet| Ipv6Addr::new(0x2001, 0xdb8, 1, subnet, 0, 0, 0, 1).into()).collect()
}

/// The address of an honest client, in a block of its own.
fn honest(number: u8) -> IpAddr {
    [203, number, 0, 1].into()
}

/// Each address opens channels up to its share, with two circuits each, and another one for each that closes. Asserts
/// that honest channels stay open, even without a circuit, and that other networks open channels.
fn hold_all_channels(addresses: &[IpAddr]) {
    let mut listener = Listener::new(ChannelParameters { channels: 256, ..ChannelParameters::default() });
    let mut established: Vec<_> =
        (0..10).map(|number| listener.client(honest(number), u32::from(number % 2))).collect();
    for number in 10..40 {
        for address in addresses.iter().cycle().take(512) {
            listener.client(*address, 2);
        }
        established.push(listener.client(honest(number), u32::from(number % 2)));
        assert!(established.iter().all(|channel| listener.is_open(*channel)), "{number} honest clients");
        assert!(listener.node.channels.len() <= 256);
    }
}

#[test]
fn honest_channels_stay_and_new_ones_open_while_sixteen_sources_are_at_their_shares() {
    hold_all_channels(&sixteen_sources());
}

#[test]
fn honest_channels_stay_and_new_ones_open_while_a_48_is_at_its_share() {
    hold_all_channels(&one_48());
}

/// Each address opens links up to its share, and sends no HELLO. Asserts that other networks open channels.
fn hold_all_handshakes(addresses: &[IpAddr]) {
    let mut listener = Listener::new(ChannelParameters { handshakes: 256, ..ChannelParameters::default() });
    let mut waiting = None;
    for number in 0..40 {
        for address in addresses.iter().cycle().take(512) {
            listener.link(*address);
        }
        let channel = listener.client(honest(number), 0);
        assert!(listener.is_open(channel), "after {number} honest clients");
        // An honest handshake that takes longer is not the one that closes.
        let waits = *waiting.get_or_insert_with(|| listener.link(honest(number)));
        assert!(!closed(&listener.node).contains(&waits.0));
    }
}

#[test]
fn others_open_channels_while_sixteen_sources_never_finish_their_handshakes() {
    hold_all_handshakes(&sixteen_sources());
}

#[test]
fn others_open_channels_while_a_48_never_finishes_its_handshakes() {
    hold_all_handshakes(&one_48());
}

#[test]
fn the_fullest_source_loses_its_oldest_handshake() {
    let mut listener = Listener::new(ChannelParameters { handshakes: 32, ..ChannelParameters::default() });
    let first = listener.link([198, 51, 100, 1].into());
    let second = listener.link([198, 51, 100, 1].into());
    let third = listener.link([198, 51, 100, 1].into());
    assert_eq!(closed(&listener.node), [third.0], "a source has a sixteenth");
    for number in 0..30 {
        listener.link(honest(number));
    }
    assert_eq!(closed(&listener.node), [third.0]);
    listener.link(honest(30));
    assert_eq!(closed(&listener.node), [third.0, first.0]);
    assert!(!closed(&listener.node).contains(&second.0));
}

#[test]
fn the_fullest_source_loses_its_least_used_channel_and_one_of_a_listed_relay_last() {
    let parameters = || ChannelParameters { channels: 64, ..ChannelParameters::default() };
    // The channels of one source: a client with two circuits, one without a circuit, another with one circuit, and a
    // relay without a circuit.
    let circuits = [2, 0, 1];
    let mut listener = Listener::new(parameters());
    let clients = circuits.map(|circuits| listener.client([198, 51, 100, 1].into(), circuits));
    let relay = {
        let mut pair = Pair::new(Node::relay(1), listener.node);
        let link = LinkId(99);
        let opened = |dialled, local, peer| LinkOpened {
            peer_address: Redacted("198.51.100.1:1".parse().unwrap()),
            ..opened(dialled, local, peer)
        };
        pair.a.handle(pair.now, LinkEvent::Opened { link, opened: opened(Some(key(2).id()), 1, 2) }, &mut pair.rng);
        pair.b.handle(pair.now, LinkEvent::Opened { link, opened: opened(None, 2, 1) }, &mut pair.rng);
        pair.room(99, ROOM);
        pair.settle();
        listener.node = pair.b;
        ChannelId(link)
    };
    assert!(listener.is_open(relay));
    listener.node.channels.set_listed(relay, true);
    for number in 0..60 {
        listener.client(honest(number), 1);
    }
    listener.last_link = 100;
    let order = [clients[1], clients[2], clients[0]];
    for (number, evicted) in (60..).zip(order) {
        let channel = listener.client(honest(number), 1);
        assert!(listener.is_open(channel) && !listener.is_open(evicted) && listener.is_open(relay));
    }
    let refused = listener.client(honest(63), 0);
    assert!(!listener.is_open(refused), "each source has one channel");
}

#[test]
fn among_equally_full_sources_only_an_idle_channel_ends_for_a_new_source() {
    let mut listener = Listener::new(ChannelParameters { channels: 32, ..ChannelParameters::default() });
    let established: Vec<_> = (0..32).map(|number| listener.client(honest(number), u32::from(number != 20))).collect();
    let early = listener.client(honest(39), 1);
    assert!(!listener.is_open(early), "no channel has been idle for long");
    listener.now = listener.now.after(Duration::from_secs(10));
    let admitted = listener.client(honest(40), 1);
    assert!(listener.is_open(admitted) && !listener.is_open(established[20]), "the idle one ends");
    let refused = listener.client(honest(41), 0);
    assert!(!listener.is_open(refused));
    assert_eq!(established.iter().filter(|channel| !listener.is_open(**channel)).count(), 1);
}

#[test]
fn an_idle_channel_stays_open_while_fuller_networks_open_links() {
    let mut listener = Listener::new(ChannelParameters { channels: 256, ..ChannelParameters::default() });
    let idle: Vec<_> = (0..10).map(|number| listener.client(honest(number), 0)).collect();
    listener.now = listener.now.after(Duration::from_secs(60));
    for number in 0..1024_u16 {
        let network = 1 + number % 5;
        listener.client(Ipv6Addr::new(0x2001, 0xdb8, network, number, 0, 0, 0, 1).into(), 1);
    }
    assert_eq!(listener.node.channels.len(), 256);
    assert!(idle.iter().all(|channel| listener.is_open(*channel)));
    // The channel of a new client stays open too, although it opens its first circuit later.
    let new = listener.client(honest(20), 0);
    for number in 2000..2100 {
        listener.client(Ipv6Addr::new(0x2001, 0xdb8, 1 + number % 5, number, 0, 0, 0, 1).into(), 1);
    }
    assert!(listener.is_open(new));
}

#[test]
fn a_refused_link_closes_no_channel() {
    let mut listener = Listener::new(ChannelParameters { channels: 32, ..ChannelParameters::default() });
    let established: Vec<_> = (0..31).map(|number| listener.client(honest(number), 0)).collect();
    let source = [198, 51, 100, 1].into();
    let refused = [0, 0].map(|circuits| listener.client(source, circuits));
    assert!(listener.is_open(refused[0]) && !listener.is_open(refused[1]), "the source is as full as others");
    assert!(established.iter().all(|channel| listener.is_open(*channel)));
}

#[test]
fn at_the_cap_of_dialled_channels_the_longest_idle_one_closes() {
    let parameters = ChannelParameters { channels: 1, ..ChannelParameters::default() };
    let mut pair = Pair::new(Node::with(LocalRole::Client, parameters), Node::relay(2));
    for number in 1..=2 {
        pair.link(number, key(2).id());
        pair.settle();
    }
    assert_eq!(pair.closed, BTreeSet::from([LinkId(1)]));
    assert!(pair.a.channels.allocate_circuit(ChannelId(LinkId(2)), &mut pair.rng).is_some());
    pair.link(3, key(2).id());
    pair.settle();
    assert_eq!(pair.closed, BTreeSet::from([LinkId(1)]), "a busy channel stays");
}
