//! Tests of the measurements through a SOCKS5 port of this process, without an overlay.

use core::time::Duration;

use clap::Parser;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{measure::Percentiles, *};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: BenchOptions,
}

fn options(arguments: &str) -> BenchOptions {
    let words = std::iter::once("bench").chain(arguments.split_ascii_whitespace());
    Command::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).options
}

/// A SOCKS5 port that connects directly to the target; `corrupt` inverts the lowest bit of the byte at that position of
/// the response.
async fn socks_port(corrupt: Option<usize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(crate::io::listener::accept_each(listener, 64, move |mut socket| async move {
        let mut head = [0; 10];
        socket.read_exact(&mut head[..4]).await.unwrap();
        socket.write_all(&[5, 2]).await.unwrap();
        socket.read_exact(&mut head[..2]).await.unwrap();
        let mut credentials = vec![0; usize::from(head[1]) + 2];
        socket.read_exact(&mut credentials).await.unwrap();
        socket.write_all(&[1, 0]).await.unwrap();
        socket.read_exact(&mut head).await.unwrap();
        let port = u16::from_be_bytes([head[8], head[9]]);
        let mut target = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        socket.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let Some(position) = corrupt else {
            let _ = tokio::io::copy_bidirectional(&mut socket, &mut target).await;
            return;
        };
        let (mut from, mut to) = target.split();
        let (mut request, mut response) = socket.split();
        let changing = async {
            let mut seen = 0;
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                if (seen..seen + length).contains(&position) {
                    buffer[position - seen] ^= 1;
                }
                seen += length;
                if response.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
            }
        };
        let _ = tokio::join!(tokio::io::copy(&mut request, &mut to), changing);
    }));
    address
}

#[tokio::test]
async fn measurements_of_streams_are_reported_as_text_and_as_json() {
    let socks = socks_port(None).await;
    for (arguments, words) in [
        ("--streams 3 --circuits 2 --bytes 3MiB", "MiB/s"),
        ("--mode ttfb --requests 7", "first byte"),
        ("--mode requests --streams 4 --requests 30", "persistent streams"),
    ] {
        let options = options(&format!("--socks {socks} --pid {} {arguments}", std::process::id()));
        let server = BenchServer::start().await.unwrap();
        let report = measure(&options, &server).await.unwrap();
        assert!(report.to_text().contains(words), "{}", report.to_text());
        let json: serde_json::Value = serde_json::to_value(&report).unwrap();
        assert!(json["phases"][0]["connect"]["p50_ms"].as_f64().unwrap() > 0.0, "{json}");
        assert!(json["cpu_seconds_per_gib"].is_number(), "{json}");
        let requests = json["phases"][0]["requests"].as_u64().unwrap();
        assert_eq!(requests, u64::from(options.load().requests));
        run(options).await.unwrap();
    }
}

#[tokio::test]
async fn a_single_changed_bit_is_detected() {
    let server = BenchServer::start().await.unwrap();
    for position in [60, 5_000, 70_000] {
        let error = fetch(socks_port(Some(position)).await, &server, 100_000).await.unwrap_err();
        assert!(matches!(error, BenchError::BodyDiffers { .. } | BenchError::HeadDiffers), "{error}");
    }
    assert!(fetch(socks_port(None).await, &server, 100_000).await.is_ok());
}

#[tokio::test]
async fn the_error_for_an_unreachable_port_or_a_timeout_names_the_option() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let failure = run(options(&format!("--socks {unused}"))).await.unwrap_err();
    assert!(failure.to_string().contains("--socks"), "{failure}");
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = options(&format!("--socks {} --limit 1", silent.local_addr().unwrap()));
    assert!(run(options).await.unwrap_err().to_string().contains("--limit"));
}

#[test]
fn values_outside_the_limits_are_rejected() {
    for arguments in ["--streams 0", "--streams 10000", "--bytes 0", "--bytes 17GiB", "--limit 0", "--circuits 65"] {
        let words = std::iter::once("bench").chain(arguments.split_ascii_whitespace());
        assert!(Command::try_parse_from(words).is_err(), "{arguments}");
    }
}

#[test]
fn percentiles_are_the_samples_of_the_nearest_rank() {
    let samples = (1..=100).map(Duration::from_millis);
    let percentiles = Percentiles::of(samples);
    assert_eq!((percentiles.p50_ms, percentiles.p99_ms), (50.0, 99.0));
    let one = Percentiles::of([Duration::from_millis(3)].into_iter());
    assert_eq!((one.p50_ms, one.p99_ms), (3.0, 3.0));
    assert_eq!(Percentiles::of(std::iter::empty()).p50_ms, 0.0);
}
