//! Dials by the stock `webrtc` crate over real sockets, also over a line that loses datagrams.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    net::UdpSocket,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use umbel::{
    base::DialTarget,
    transport::native::{CipherSuite, EndpointConfig},
};
use webrtc::{
    data_channel::{DataChannel, DataChannelEvent, RTCDataChannelInit},
    peer_connection::{
        PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCSessionDescription, SettingEngineBuilder,
    },
};

use super::{
    sockets::{Relay, TIMEOUT, dial_and_echo},
    world::{PASSWORD, SplitMix64, UFRAG, relay_config},
};

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

/// Ignores all events, because the diallers poll their data channels.
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
            // Half of the diallers open the data channel in band.
            let (peer, channel) = stock_dial(&target, number % 2 == 0).await;
            let mut echoes = 0;
            timeout(TIMEOUT, async {
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

/// A line between one dialler and a relay, which loses a share of the datagrams in both directions and delays the others.
struct LossyLine {
    address: SocketAddr,
    lost: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl LossyLine {
    async fn start(relay: SocketAddr, loss: f64, delay: Duration, seed: u64) -> Self {
        let sockets = [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
        sockets[1].connect(relay).await.unwrap();
        let (address, lost) = (sockets[0].local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn(carry(sockets, loss, delay, seed, Arc::clone(&lost)));
        Self { address, lost, task }
    }
}

/// Carries datagrams between `sockets`, that of the dialler and that of the relay.
async fn carry(sockets: [UdpSocket; 2], loss: f64, delay: Duration, seed: u64, lost: Arc<AtomicU64>) {
    let [of_dialler, of_relay] = sockets;
    let mut random = [SplitMix64(seed), SplitMix64(!seed)];
    // The datagrams on the way, with their arrival and whether they go to the relay.
    let mut carried: VecDeque<(Instant, bool, Vec<u8>)> = VecDeque::new();
    let mut dialler = None;
    let mut buffers = [[0; 2_048]; 2];
    loop {
        let [at_dialler, at_relay] = &mut buffers;
        let due = carried.front().map_or_else(|| Instant::now() + TIMEOUT, |datagram| datagram.0);
        let (to_relay, datagram) = tokio::select! {
            received = of_dialler.recv_from(at_dialler) => {
                let (length, from) = received.unwrap();
                dialler = Some(from);
                (true, at_dialler[..length].to_vec())
            }
            received = of_relay.recv(at_relay) => (false, at_relay[..received.unwrap()].to_vec()),
            () = sleep_until(due) => {
                match (carried.pop_front(), dialler) {
                    (Some((_, true, datagram)), _) => drop(of_relay.send(&datagram).await.unwrap()),
                    (Some((_, false, datagram)), Some(dialler)) => {
                        // The dialler may have closed its socket.
                        let _ = of_dialler.send_to(&datagram, dialler).await;
                    }
                    _ => {}
                }
                continue;
            }
        };
        if random[usize::from(to_relay)].happens(loss) {
            lost.fetch_add(1, Ordering::Relaxed);
        } else {
            carried.push_back((Instant::now() + delay, to_relay, datagram));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_webrtc_crate_exchanges_a_megabyte_over_a_line_that_loses_one_percent() {
    const MESSAGES: u8 = 25;
    const LENGTH: usize = 40_000;
    let relay = Relay::start(&["127.0.0.1:0"]);
    let line = LossyLine::start(relay.target.addresses[0], 0.01, Duration::from_millis(5), 7).await;
    let target = DialTarget { addresses: vec![line.address], ..relay.target.clone() };
    let (peer, channel) = stock_dial(&target, true).await;
    let expected: Vec<u8> = (0..MESSAGES).flat_map(|number| vec![number; LENGTH]).collect();
    let mut received = Vec::new();
    let exchange = async {
        while received.len() < expected.len() {
            match channel.poll().await.expect("the channel stays open") {
                DataChannelEvent::OnOpen => {
                    for message in expected.chunks(LENGTH) {
                        channel.send(BytesMut::from(message)).await.unwrap();
                    }
                }
                DataChannelEvent::OnMessage(message) => received.extend_from_slice(&message.data),
                _ => {}
            }
        }
    };
    timeout(2 * TIMEOUT, exchange).await.expect("all bytes come back in time");
    assert!(received == expected, "the bytes that came back differ");
    let lost = line.lost.load(Ordering::Relaxed);
    assert!(lost >= 10, "the line has lost {lost} datagrams");
    peer.close().await.unwrap();
    line.task.abort();
    relay.stop().await;
}
