//! Failures of nodes of a testnet.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};

use super::harness::*;

/// Time limit for the next successful request after a relay is killed.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn a_download_whose_relay_is_killed_fails_and_the_next_request_succeeds() {
    let testnet = Testnet::start(&["--relays=8", "--exits=3"]);
    let target = TargetServer::start();
    let mut stream = connect(testnet.socks, target.address);
    let length = 1 << 30;
    request(&mut stream, length);
    let mut part = vec![0; 1 << 20];
    stream.read_exact(&mut part).unwrap();
    // All circuits share the guard, so the guard carries the download.
    testnet.kill(&testnet.relay_folder(&testnet.first_path[0]));
    let killed = Instant::now();
    let outcome = std::io::copy(&mut stream, &mut std::io::sink());
    assert!(outcome.is_err(), "an error, never a clean end: {outcome:?}");
    let mut stream = connect(testnet.socks, target.address);
    request(&mut stream, 100_000);
    assert!(is_body(&mut stream, 100_000).unwrap());
    assert!(killed.elapsed() < RECOVERY_TIMEOUT, "took {:?}", killed.elapsed());
}

#[test]
fn clients_continue_without_the_directory() {
    let testnet = Testnet::start(&["--relays=3", "--exits=1"]);
    testnet.kill("directory");
    let target = TargetServer::start();
    for _ in 0..3 {
        let mut stream = connect(testnet.socks, target.address);
        request(&mut stream, 100_000);
        assert!(is_body(&mut stream, 100_000).unwrap());
    }
}

#[test]
fn a_restart_keeps_identities_and_guards() {
    let folder = tempfile::tempdir().unwrap();
    let directory = format!("--dir={}", folder.path().display());
    let run = |first_hops: &mut Vec<String>| {
        let output = umbel()
            .args(["testnet", "--check", "--socks=127.0.0.1:0", "--http=127.0.0.1:0", "--page=127.0.0.1:0", &directory])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let circuit = text.lines().find(|line| line.contains(" circuit ")).expect("a circuit").to_owned();
        first_hops.push(circuit.split("circuit").nth(1).unwrap().split_whitespace().next().unwrap().to_owned());
        (1..=7).map(|number| show_keys(&folder.path().join(format!("relay{number}")))).collect::<Vec<_>>()
    };
    let mut first_hops = Vec::new();
    let before = run(&mut first_hops);
    let after = run(&mut first_hops);
    assert_eq!(before, after, "identities are kept");
    assert_eq!(first_hops[0], first_hops[1], "the guard is kept");
}

fn show_keys(folder: &std::path::Path) -> String {
    let output = umbel().args(["keys", "relay", "--data-dir"]).arg(folder).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_directory_without_pages_answers_with_instructions() {
    let folder = tempfile::tempdir().unwrap();
    let mut directory = umbel()
        .args(["directory", "--supervised", "--listen=127.0.0.1:0", "--data-dir"])
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(directory.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let report: serde_json::Value = serde_json::from_str(&line).unwrap();
    let api: SocketAddr = report["api"].as_str().unwrap().parse().unwrap();
    for path in ["/volunteer", "/search"] {
        let mut stream = TcpStream::connect(api).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        // The reason depends on whether this program was built with the pages.
        let missing = if answer.contains("cargo xtask web") { "was built without" } else { "--web" };
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains(missing), "{answer}");
    }
    drop(directory.stdin.take());
    directory.wait().unwrap();
}
