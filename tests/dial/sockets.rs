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

use tokio::{sync::oneshot, task::JoinHandle};
use umbel::{
    base::{DialError, DialTarget, Lane, LinkEvent, RelayId, Slots, Transmit},
    transport::native::{Counts, EndpointConfig},
};

use super::{
    attacks::{listening_endpoint, start_dial},
    drive::{DrivenEndpoint, echo},
    world::{client_config, relay_config, target},
};

pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// A relay that echoes messages.
pub(crate) struct Relay {
    pub(crate) target: DialTarget,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Counts>,
}

impl Relay {
    pub(crate) fn start(listen: &[&str]) -> Self {
        Self::start_with(relay_config(), listen)
    }

    pub(crate) fn start_with(config: EndpointConfig, listen: &[&str]) -> Self {
        let listen: Vec<SocketAddr> = listen.iter().map(|address| address.parse().unwrap()).collect();
        let mut driven = DrivenEndpoint::new(config, &listen);
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

    /// Stops the relay; returns its counts.
    pub(crate) async fn stop(self) -> Counts {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

/// Runs `driven` until `done` returns true; panics with `what` after [`TIMEOUT`].
async fn run_until(
    driven: &mut DrivenEndpoint,
    what: &str,
    mut done: impl FnMut(LinkEvent, &mut Vec<Transmit>) -> bool,
) {
    let started = Instant::now();
    let mut is_done = false;
    while !is_done {
        assert!(started.elapsed() < TIMEOUT, "{what}");
        driven.turn(Duration::from_millis(50), |event, outputs| is_done |= done(event, outputs)).await;
    }
}

#[tokio::test]
async fn twenty_relays_are_dialled_simultaneously_and_echo_over_ipv4_and_ipv6() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let relays: Vec<Relay> = (0..20).map(|_| Relay::start(&[listen])).collect();
        let mut client = DrivenEndpoint::new(client_config(), &[]);
        for (number, relay) in (0..).zip(&relays) {
            let target = DialTarget { relay: RelayId::from_bytes([number; 32]), ..relay.target.clone() };
            client.transmit(Transmit::Dial(target));
        }
        let (mut numbers, mut echoes) = (HashMap::new(), 0);
        run_until(&mut client, "twenty links echo", |event, outputs| {
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
pub(crate) async fn dial_and_echo(target: DialTarget, number: u8) {
    let mut client = DrivenEndpoint::new(client_config(), &[]);
    client.transmit(Transmit::Dial(target));
    let mut echoes = 0;
    run_until(&mut client, "an echo", |event, outputs| {
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
                echoes += 1;
                if echoes == 4 {
                    outputs.push(Transmit::Close(link));
                }
            }
            LinkEvent::DialFailed { error, .. } => panic!("{error}"),
            _ => {}
        }
        echoes == 4
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
    let (to, hello) = (relay.target.addresses[0], start_dial(&listening_endpoint()).1);
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
                // Limits the rate to about 20,000 datagrams per second. A flood that fills the kernel's queue would block all
                // dials.
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
    let mut client = DrivenEndpoint::new(client_config(), &[]);
    let started = Instant::now();
    client.transmit(Transmit::Dial(DialTarget { fingerprint: [1; 32], ..relay.target.clone() }));
    run_until(&mut client, "refused", |event, _| match event {
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
