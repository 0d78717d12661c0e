//! Benchmark of the native transport over loopback: the time of a dial, and of a bulk transfer in one direction.
#![allow(missing_docs, reason = "criterion's macros generate undocumented items")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench runs in real time and fails by panicking"
)]

#[path = "../tests/dial/drive.rs"]
mod drive;

use std::{
    hint::black_box,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};
use umbel::{
    base::{DialTarget, Lane, LinkEvent, LinkId, Rate, RelayId, Slots, Transmit},
    transport::native::{Certificate, EndpointConfig, Ice},
};

use drive::{DrivenEndpoint, echo};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Starts a relay in a thread of the process. The relay echoes messages of up to 64 bytes and discards longer messages.
fn relay() -> DialTarget {
    let (target_sender, target) = mpsc::channel();
    thread::spawn(move || {
        runtime().block_on(async move {
            let ice = Ice::new("umbelBench", "benchbenchbenchbenchbench").expect("a pair");
            let mut config = EndpointConfig::new(Certificate::generate().expect("a certificate"));
            config.accept = Some(ice.clone());
            // A source has a sixteenth.
            config.caps.links = 1_600_000;
            config.caps.handshakes = Rate { per_second: 100_000, burst: 100_000 };
            config.caps.handshakes_of_source = config.caps.handshakes;
            let mut driven = DrivenEndpoint::new(config, &["127.0.0.1:0".parse().expect("an address")]);
            let target = DialTarget {
                relay: RelayId::from_bytes([7; 32]),
                addresses: driven.listening(),
                ice_ufrag: ice.ufrag().to_owned(),
                ice_password: ice.password().to_owned(),
                fingerprint: driven.endpoint.fingerprint(),
            };
            target_sender.send(target).expect("the bench waits");
            loop {
                let react = |event, outgoing: &mut Vec<Transmit>| match &event {
                    LinkEvent::Message { message, .. } if message.len() > 64 => {}
                    _ => echo(event, outgoing),
                };
                driven.turn(Duration::from_secs(1), react).await;
            }
        });
    });
    target.recv().expect("a relay")
}

fn client() -> DrivenEndpoint {
    let mut config = EndpointConfig::new(Certificate::generate().expect("a certificate"));
    config.fresh_certificate_per_dial = true;
    DrivenEndpoint::new(config, &[])
}

/// Dials until the link is open.
async fn open(client: &mut DrivenEndpoint, target: &DialTarget) -> LinkId {
    client.transmit(Transmit::Dial(target.clone()));
    let mut link = None;
    while link.is_none() {
        client
            .turn(Duration::from_secs(1), |event, _| match event {
                LinkEvent::Opened { link: opened, .. } => link = Some(opened),
                LinkEvent::DialFailed { error, .. } => panic!("{error}"),
                _ => {}
            })
            .await;
    }
    link.expect("open")
}

fn dial(c: &mut Criterion) {
    let (runtime, target) = (runtime(), relay());
    c.bench_function("dial", |b| {
        b.iter_custom(|dials| {
            let mut spent = Duration::ZERO;
            for _ in 0..dials {
                runtime.block_on(async {
                    let mut client = client();
                    let started = Instant::now();
                    let link = black_box(open(&mut client, &target).await);
                    spent += started.elapsed();
                    client.transmit(Transmit::Close(link));
                    client.turn(Duration::ZERO, |_, _| {}).await;
                });
            }
            spent
        });
    });
}

/// Sends `count` messages as room allows, then a short message, and waits for the echo of the short message.
async fn send(client: &mut DrivenEndpoint, link: LinkId, count: u64, size: usize) {
    let (message, mut left, mut room, mut done) = (Slots::from(vec![7; size]), count, 256 << 10, false);
    let lane = Lane::FIRST;
    while !done {
        while left > 0 && room > 0 {
            client.transmit(Transmit::Message { link, lane, message: message.clone() });
            room = usize::saturating_sub(room, size);
            left -= 1;
            if left == 0 {
                client.transmit(Transmit::Message { link, lane, message: b"done"[..].into() });
            }
        }
        client
            .turn(Duration::from_secs(1), |event, _| match event {
                LinkEvent::Room { bytes, .. } => room = bytes,
                LinkEvent::Message { .. } => done = true,
                LinkEvent::Closed { reason, .. } => panic!("{reason}"),
                _ => {}
            })
            .await;
    }
}

fn bulk(c: &mut Criterion) {
    const MESSAGES: u64 = 4_096;
    let (runtime, target) = (runtime(), relay());
    let mut group = c.benchmark_group("bulk");
    group.sample_size(10);
    for size in [1 << 10, 16 << 10] {
        group.throughput(Throughput::Bytes(MESSAGES * size as u64));
        group.bench_function(format!("{size} byte messages"), |b| {
            let mut client = runtime.block_on(async { client() });
            let link = runtime.block_on(open(&mut client, &target));
            b.iter(|| runtime.block_on(send(&mut client, link, MESSAGES, size)));
        });
    }
}

criterion_group!(benches, dial, bulk);
criterion_main!(benches);
