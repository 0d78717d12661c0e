//! Dials over real sockets on loopback.

use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use umbel::{
    base::{DialError, DialTarget, Lane, LinkEvent, RelayId, Slots, Transmit},
    transport::native::{CipherSuite, Counts, EndpointConfig},
};
use webrtc::{
    data_channel::{DataChannel, DataChannelEvent, RTCDataChannelInit},
    peer_connection::{
        PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCSessionDescription, SettingEngineBuilder,
    },
};

use super::{
    attacks::{dialling, relay as relay_endpoint},
    drive::{Driven, echo},
    world::{PASSWORD, UFRAG, client_config, relay_config, target},
};

const DEADLINE: Duration = Duration::from_secs(30);

/// An echoing relay; when stopped, it returns its counts.
struct Relay {
    target: DialTarget,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Counts>,
}

impl Relay {
    fn start(listen: &[&str]) -> Self {
        Self::start_with(relay_config(), listen)
    }

    fn start_with(config: EndpointConfig, listen: &[&str]) -> Self {
        let listen: Vec<SocketAddr> = listen.iter().map(|address| address.parse().unwrap()).collect();
        let mut driven = Driven::new(config, &listen);
        let mut target = target(&driven.endpoint, listen[0]);
        target.addresses = driven.listening();
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            while stopped.try_recv().is_err() {
                driven.turn(Duration::from_millis(20), echo).await;
            }
            driven.endpoint.counts()
        });
        Self { target, stop, task }
    }

    async fn stop(self) -> Counts {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

/// Runs `driven` until `done` returns true.
async fn until(driven: &mut Driven, what: &str, mut done: impl FnMut(LinkEvent, &mut Vec<Transmit>) -> bool) {
    let started = Instant::now();
    let mut over = false;
    while !over {
        assert!(started.elapsed() < DEADLINE, "{what}");
        driven.turn(Duration::from_millis(50), |event, outputs| over |= done(event, outputs)).await;
    }
}

#[tokio::test]
async fn twenty_relays_are_dialled_at_once_and_echo_over_ipv4_and_ipv6() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let relays: Vec<Relay> = (0..20).map(|_| Relay::start(&[listen])).collect();
        let mut client = Driven::new(client_config(), &[]);
        for (number, relay) in (0..).zip(&relays) {
            let target = DialTarget { relay: RelayId::from_bytes([number; 32]), ..relay.target.clone() };
            client.transmit(Transmit::Dial(target));
        }
        let (mut numbers, mut echoes) = (HashMap::new(), 0);
        until(&mut client, "twenty links echo", |event, outputs| {
            match event {
                LinkEvent::Opened { link, opened } => {
                    let [number, ..] = *opened.dialled.unwrap().as_bytes();
                    numbers.insert(link, number);
                    for lane in 0..4 {
                        let (lane, message) = (Lane::new(lane).unwrap(), Slots::from(vec![number; 5_000]));
                        outputs.push(Transmit::Message { link, lane, message });
                    }
                }
                LinkEvent::Message { link, message, .. } => {
                    assert_eq!(message, Slots::from(vec![numbers[&link]; 5_000]));
                    echoes += 1;
                }
                LinkEvent::DialFailed { error, .. } => panic!("{error}"),
                _ => {}
            }
            echoes == 80
        })
        .await;
        for relay in relays {
            relay.stop().await;
        }
    }
}

/// Dials, sends 17 KiB over each lane, waits for the echoes, and closes.
async fn dial_and_echo(target: DialTarget, number: u8) {
    let mut client = Driven::new(client_config(), &[]);
    client.transmit(Transmit::Dial(target));
    let mut pieces = 0;
    until(&mut client, "an echo", |event, outputs| {
        match event {
            LinkEvent::Opened { link, .. } => {
                let message = Slots::from(vec![number; 17 << 10]);
                outputs.extend((0..4).map(|lane| Transmit::Message {
                    link,
                    lane: Lane::new(lane).unwrap(),
                    message: message.clone(),
                }));
            }
            LinkEvent::Message { link, message, .. } => {
                assert_eq!(message, Slots::from(vec![number; 17 << 10]));
                pieces += 1;
                if pieces == 4 {
                    outputs.push(Transmit::Close(link));
                }
            }
            LinkEvent::DialFailed { error, .. } => panic!("{error}"),
            _ => {}
        }
        pieces == 4
    })
    .await;
    while client.endpoint.counts().links > 0 {
        client.turn(Duration::from_millis(50), |_, _| {}).await;
    }
}

#[tokio::test]
async fn twenty_diallers_share_one_port() {
    let relay = Relay::start(&["127.0.0.1:0"]);
    let diallers: Vec<_> = (0..20).map(|number| tokio::spawn(dial_and_echo(relay.target.clone(), number))).collect();
    for dialler in diallers {
        dialler.await.unwrap();
    }
    let counts = relay.stop().await;
    assert_eq!((counts.hellos_answered, counts.half_open), (20, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dials_succeed_while_garbage_and_spoofed_hellos_flood_the_port() {
    let relay = Relay::start(&["127.0.0.1:0"]);
    let (to, hello) = (relay.target.addresses[0], dialling(&relay_endpoint()).1);
    let (flooding, rounds) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let flood = std::thread::spawn({
        let (flooding, rounds) = (Arc::clone(&flooding), Arc::clone(&rounds));
        move || {
            let sockets: Vec<_> = (0..8).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
            while flooding.load(Ordering::Relaxed) {
                let number = rounds.fetch_add(1, Ordering::Relaxed);
                let mut spoofed = hello.clone();
                spoofed[27..35].copy_from_slice(&number.to_be_bytes()); // the client random
                for socket in &sockets {
                    // The relay may have a full buffer or refuse the datagram.
                    let _ = socket.send_to(&spoofed, to);
                    let _ = socket.send_to(&spoofed[..40], to);
                    let _ = socket.send_to(&number.to_be_bytes(), to);
                }
                // The rate is about 20,000 datagrams per second, because a flood that fills the kernel's queue would block
                // all dials.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let mut dials = 0;
    while dials < 20 || rounds.load(Ordering::Relaxed) < 1_000 {
        dial_and_echo(relay.target.clone(), 1).await;
        dials += 1;
    }
    flooding.store(false, Ordering::Relaxed);
    flood.join().unwrap();
    let counts = relay.stop().await;
    assert!(counts.hellos_answered > 1_000 && counts.without_link > 1_000, "a flood: {counts:?}");
    assert!(counts.links <= dials && counts.half_open == 0, "{counts:?}");
}

#[tokio::test]
async fn a_wrong_fingerprint_is_refused_within_a_second() {
    let relay = Relay::start(&["127.0.0.1:0"]);
    let mut client = Driven::new(client_config(), &[]);
    let started = Instant::now();
    client.transmit(Transmit::Dial(DialTarget { fingerprint: [1; 32], ..relay.target.clone() }));
    until(&mut client, "refused", |event, _| match event {
        LinkEvent::DialFailed { error, .. } => {
            assert_eq!(error, DialError::WrongFingerprint);
            true
        }
        LinkEvent::Opened { .. } => panic!("opened"),
        _ => false,
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(1));
    relay.stop().await;
}

/// The SDP answer that a WebRTC dialler makes for a relay, from the descriptor alone.
fn answer(target: &DialTarget, mid: &str) -> String {
    let fingerprint: Vec<String> = target.fingerprint.iter().map(|byte| format!("{byte:02X}")).collect();
    let address = target.addresses[0];
    format!(
        "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=ice-lite\r\na=group:BUNDLE {mid}\r\n\
         m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=ice-ufrag:{UFRAG}\r\n\
         a=ice-pwd:{PASSWORD}\r\na=fingerprint:sha-256 {}\r\na=setup:passive\r\na=mid:{mid}\r\na=sctp-port:5000\r\n\
         a=max-message-size:65536\r\na=candidate:1 1 udp 2130706431 {} {} typ host\r\na=end-of-candidates\r\n",
        fingerprint.join(":"),
        address.ip(),
        address.port(),
    )
}

/// Ignores all events, because the diallers poll their channels.
struct NoHandler;

impl PeerConnectionEventHandler for NoHandler {}

/// Dials with the stock `webrtc` crate; lane 0 is negotiated out of band, or opened in band.
async fn stock_dial(target: &DialTarget, negotiated: bool) -> (impl PeerConnection, Arc<dyn DataChannel>) {
    let settings = SettingEngineBuilder::new().with_include_loopback_candidate(true).build();
    let peer = PeerConnectionBuilder::new()
        .with_setting_engine(settings)
        .with_handler(Arc::new(NoHandler))
        .with_udp_addrs(vec!["127.0.0.1:0".to_owned()])
        .build()
        .await
        .unwrap();
    let init = RTCDataChannelInit { negotiated: negotiated.then_some(0), ..Default::default() };
    let channel = peer.create_data_channel("lane", Some(init)).await.unwrap();
    let offer = peer.create_offer(None).await.unwrap();
    let mid = offer.sdp.lines().find_map(|line| line.strip_prefix("a=mid:")).unwrap_or("0").trim().to_owned();
    peer.set_local_description(offer).await.unwrap();
    peer.set_remote_description(RTCSessionDescription::answer(answer(target, &mid)).unwrap()).await.unwrap();
    (peer, channel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_webrtc_crate_dials_from_the_descriptor_alone() {
    stock_dials(relay_config(), 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_webrtc_crate_and_relays_dial_with_each_cipher_suite() {
    for suite in CipherSuite::ALL {
        let config = |mut config: EndpointConfig| {
            config.cipher_suites = vec![suite];
            config
        };
        stock_dials(config(relay_config()), 4).await;
        let relay = Relay::start_with(config(relay_config()), &["127.0.0.1:0"]);
        dial_and_echo(relay.target.clone(), 1).await;
        relay.stop().await;
    }
}

/// Concurrent dials by the stock crate, each with ten echoes.
async fn stock_dials(config: EndpointConfig, dials: u8) {
    let relay = Relay::start_with(config, &["127.0.0.1:0"]);
    let dials = (0..dials).map(|number| {
        let target = relay.target.clone();
        tokio::spawn(async move {
            // Half of them open their channel in band.
            let (peer, channel) = stock_dial(&target, number % 2 == 0).await;
            let mut echoes = 0;
            timeout(DEADLINE, async {
                while let Some(event) = channel.poll().await {
                    match event {
                        DataChannelEvent::OnOpen => {
                            for _ in 0..10 {
                                channel.send(BytesMut::from(&vec![number; 10_000][..])).await.unwrap();
                            }
                        }
                        DataChannelEvent::OnMessage(message) => {
                            assert_eq!(&message.data[..], &vec![number; 10_000][..]);
                            echoes += 1;
                            if echoes == 10 {
                                return;
                            }
                        }
                        _ => {}
                    }
                }
                panic!("the channel closed after {echoes} echoes");
            })
            .await
            .expect("in time");
            peer.close().await.unwrap();
        })
    });
    for dial in dials.collect::<Vec<_>>() {
        dial.await.unwrap();
    }
    relay.stop().await;
}
