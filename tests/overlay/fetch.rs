//! `umbel fetch` through a testnet, by an exit and over a stream: complete bodies, bounded memory, no partial file.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
    time::Instant,
};

use nix::sys::signal::{Signal, kill};

use super::harness::*;

#[test]
#[ignore = "takes a minute: cargo xtask test runs it"]
fn a_body_larger_than_the_memory_of_any_node_is_fetched_by_an_exit() {
    const LENGTH: u64 = 250_000_000;
    let testnet = Testnet::start(&[]);
    let target = TargetServer::start();
    let file = testnet.folder.path().join("body");
    let fetched = fetch(&testnet, &["--via=request", "--output", file.to_str().unwrap(), &target.url(LENGTH)]);
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    assert_eq!(fs::metadata(&file).unwrap().len(), LENGTH);
    assert!(is_body(&mut fs::File::open(&file).unwrap(), LENGTH).unwrap());
    let peaks = testnet.peak_memory();
    assert!(!peaks.is_empty());
    for (node, peak) in peaks {
        assert!(peak < LENGTH * 3 / 5, "{node} took {} MiB", peak >> 20);
    }
}

#[test]
fn a_body_arrives_complete_by_an_exit_and_over_a_stream() {
    let testnet = Testnet::start(&[]);
    let target = TargetServer::start();
    for way in ["--via=request", "--via=stream"] {
        let fetched = fetch(&testnet, &[way, &target.url(5_000_000)]);
        assert!(fetched.status.success(), "{way}: {}", String::from_utf8_lossy(&fetched.stderr));
        assert_eq!(fetched.stdout.len(), 5_000_000);
        assert!(is_body(&mut fetched.stdout.as_slice(), 5_000_000).unwrap());
    }
}

#[test]
fn a_failed_fetch_leaves_no_file_and_reports_an_error() {
    let testnet = Testnet::start(&[]);
    for way in ["--via=request", "--via=stream"] {
        let failed = fetch(&testnet, &[way, "http://umbel.onion/"]);
        assert!(String::from_utf8_lossy(&failed.stderr).contains("has a reserved name"), "{failed:?}");
    }
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = testnet.folder.path().join("body");
    for way in ["--via=request", "--via=stream"] {
        let failed = fetch(&testnet, &[way, "--output", file.to_str().unwrap(), &format!("http://{unused}/x")]);
        assert_eq!(failed.status.code(), Some(1), "{failed:?}");
        assert!(String::from_utf8_lossy(&failed.stderr).starts_with("umbel: "), "{failed:?}");
        assert!(!file.exists());
    }
}

#[test]
fn an_interrupted_fetch_leaves_no_file() {
    let testnet = Testnet::start(&["--relays=3", "--exits=1"]);
    // The target sends half of the announced length, then nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let folder = tempfile::tempdir().unwrap();
    let files = || {
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect::<Vec<_>>()
    };
    let mut process = umbel()
        .args(["fetch", &format!("--control={}", testnet.page), "--via=stream", "--output"])
        .arg(folder.path().join("body"))
        .arg(format!("http://{address}/"))
        .spawn()
        .unwrap();
    await_true("half of the body has arrived", Instant::now() + TIMEOUT, || files() == [4]);
    kill(pid(&process), Signal::SIGINT).unwrap();
    assert_eq!(wait_for_end(&mut process).code(), Some(1));
    assert!(files().is_empty());
}

fn fetch(testnet: &Testnet, arguments: &[&str]) -> std::process::Output {
    umbel().args(["fetch", &format!("--control={}", testnet.page)]).args(arguments).output().unwrap()
}
