//! Tests of volunteers (relays that don't listen): volunteers carry circuits, and requests succeed after a volunteer has
//! ended.

use std::{
    io::Read as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use super::harness::*;

#[test]
fn a_circuit_pinned_through_a_volunteer_carries_20_mb_unchanged() {
    const LENGTH: u64 = 20_000_000;
    let testnet = Testnet::start(&["--volunteers=2", "--relays=5"]);
    let volunteer = testnet.identity_of("volunteer2");
    let client = testnet.client(&["--middle", &volunteer]);
    let target = TargetServer::start();
    let mut stream = connect(client.socks, target.address);
    request(&mut stream, LENGTH);
    assert!(is_body(&mut stream, LENGTH).unwrap());
    // The volunteer is the middle relay of all circuits, so its end makes a transfer fail.
    let mut stream = connect(client.socks, target.address);
    request(&mut stream, 1 << 40);
    stream.read_exact(&mut vec![0; 1 << 20]).unwrap();
    testnet.kill("volunteer2");
    let outcome = std::io::copy(&mut stream, &mut std::io::sink());
    assert!(outcome.is_err(), "an error, never a clean end: {outcome:?}");
}

/// Time limit for the end of circuits. It is below the three seconds after which a silent link is closed.
const PROMPT_END_TIMEOUT: Duration = Duration::from_millis(1_500);

#[test]
fn circuits_of_a_terminated_volunteer_or_relay_end_immediately() {
    let testnet = Testnet::start(&["--volunteers=1", "--relays=5"]);
    let volunteer = testnet.identity_of("volunteer1");
    let target = TargetServer::start();
    for (name, signal) in [("volunteer1", Signal::SIGTERM), ("relay1", Signal::SIGINT)] {
        let middle = if name == "volunteer1" { volunteer.clone() } else { testnet.identity_of(name) };
        let client = testnet.client(&["--middle", &middle]);
        let mut stream = connect(client.socks, target.address);
        request(&mut stream, 1 << 40);
        stream.read_exact(&mut vec![0; 1 << 20]).unwrap();
        let (pid, at) = (testnet.pid_of(name), Instant::now());
        kill(pid, signal).unwrap();
        let outcome = std::io::copy(&mut stream, &mut std::io::sink());
        let elapsed = at.elapsed();
        println!("{name}: {elapsed:?}");
        assert!(outcome.is_err(), "an error, never a clean end: {outcome:?}");
        assert!(elapsed < PROMPT_END_TIMEOUT, "{name}: {elapsed:?}");
        // A zombie process has no arguments.
        let runs = |(other, arguments): &(_, Vec<String>)| *other == pid && arguments.len() > 1;
        await_true("the process ends", at + TIMEOUT, || !processes().iter().any(runs));
    }
}

/// Number of requests.
const REQUESTS: usize = 400;
/// Number of requests between two kills of a volunteer.
const REQUESTS_PER_KILL: usize = 80;
const VOLUNTEERS: usize = 10;
/// Time limit of one request, also during a kill.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

#[test]
fn nearly_all_requests_succeed_at_the_first_try_while_volunteers_are_killed() {
    let testnet = Testnet::start(&[&format!("--volunteers={VOLUNTEERS}"), "--relays=5", "--log=debug"]);
    let to_kill: Vec<_> =
        (1..=REQUESTS / REQUESTS_PER_KILL).map(|number| testnet.pid_of(&format!("volunteer{number}"))).collect();
    let (to_kill, port) = (Arc::new(to_kill), testnet.socks);
    let target = TargetServer::start().address;
    let begun = Arc::new(AtomicUsize::new(0));
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let workers = (0..4).map(|_| {
        let (to_kill, begun, outcomes) = (Arc::clone(&to_kill), Arc::clone(&begun), Arc::clone(&outcomes));
        thread::spawn(move || {
            loop {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                if number >= REQUESTS {
                    return;
                }
                if number > 0 && number.is_multiple_of(REQUESTS_PER_KILL) {
                    kill(to_kill[number / REQUESTS_PER_KILL - 1], Signal::SIGKILL).unwrap();
                }
                let at = Instant::now();
                // Each request has a separate user name, and thus a separate circuit. A failed request panics.
                let request = thread::spawn(move || fetch_as(port, &number.to_string(), target));
                let succeeded = request.join().is_ok();
                outcomes.lock().unwrap().push((succeeded, at.elapsed()));
                if !succeeded {
                    println!("request {number} failed; the second try must succeed");
                    fetch_as(port, &number.to_string(), target);
                }
            }
        })
    });
    workers.collect::<Vec<_>>().into_iter().for_each(|worker| worker.join().unwrap());
    let outcomes = outcomes.lock().unwrap();
    let succeeded = outcomes.iter().filter(|(succeeded, _)| *succeeded).count();
    let longest = outcomes.iter().map(|(_, elapsed)| *elapsed).max().unwrap();
    let mut times: Vec<_> = outcomes.iter().map(|(_, elapsed)| *elapsed).collect();
    times.sort_unstable();
    println!(
        "{succeeded} of {} requests succeeded; median {:?}, 95th percentile {:?}, longest {longest:?}",
        outcomes.len(),
        times[times.len() / 2],
        times[times.len() * 95 / 100],
    );
    assert_eq!(outcomes.len(), REQUESTS);
    let carried: u64 = (1..=VOLUNTEERS).map(|number| cells_of(&testnet, &format!("volunteer{number}"))).sum();
    println!("volunteers forwarded {carried} cells");
    assert!(carried > 100, "volunteers forwarded too few cells: {carried}");
    assert!(succeeded * 100 >= REQUESTS * 99, "{succeeded} of {REQUESTS} requests succeeded");
    assert!(longest < REQUEST_TIMEOUT, "a request took {longest:?}");
}

/// Cells that a volunteer has forwarded, according to the last line of its log.
fn cells_of(testnet: &Testnet, name: &str) -> u64 {
    let log = std::fs::read_to_string(testnet.folder.path().join(format!("{name}.log"))).unwrap();
    let line = log.lines().rev().find(|line| line.contains("circuits of other nodes")).unwrap();
    // Colour codes may precede the number.
    let count = line.rsplit("cells").next().unwrap().rsplit(['m', '=']).next().unwrap();
    count.trim().parse().unwrap()
}

fn fetch_as(port: std::net::SocketAddr, user: &str, target: std::net::SocketAddr) {
    let (code, mut stream) = socks(port, Some((user, "x")), 1, &target.ip().to_string(), target.port());
    assert_eq!(code, 0, "CONNECT succeeds");
    request(&mut stream, 1_000);
    assert!(is_body(&mut stream, 1_000).unwrap());
}

#[test]
fn a_volunteer_rejects_options_of_listening_relays() {
    for (options, expected) in [
        (["--listen", "127.0.0.1:1"], "listen"),
        (["--address", "192.0.2.1:1"], "address"),
        (["--exit", "accept *"], "exit"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output =
            umbel().args(["relay", "--no-listen", "--data-dir"]).arg(folder.path()).args(options).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(expected) && text.contains("no_listen"), "{text}");
    }
}
