//! Requests through a network whose relays are killed, stopped, restarted, flooded and left without disk space.
//!
//! `cargo xtask chaos` runs this test for minutes; docs/chaos.md describes it and has the figures.

mod disks;
mod load;
mod nodes;
mod strikes;
mod tally;

use std::{
    collections::VecDeque,
    fs,
    net::SocketAddr,
    path::Path,
    str::FromStr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use self::{
    disks::{Disks, temporary_files},
    load::{Outcome, REQUEST_TIMEOUT, Request, TargetServer, request},
    nodes::Nodes,
    strikes::Strikes,
    tally::{Tally, load as machine_load},
};
use super::harness::*;

/// Time between two requests.
const REQUEST_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two turns of the loop.
const TURN: Duration = Duration::from_millis(20);
/// Time for which a finished request isn't counted yet, because the target server may still search its exit.
const ATTRIBUTION_TIME: Duration = Duration::from_millis(500);
/// Requests after all nodes were killed and started again.
const LAST_REQUESTS: u32 = 10;
/// The first of their numbers, beyond those of the load.
const LAST_NUMBER: u32 = 1_000_000;

/// Settings of a run, from the environment. The defaults are those of `cargo xtask test`.
struct Settings {
    seed: u64,
    duration: Duration,
    relays: usize,
    /// The fraction of requests that must be right at the first try, without those cut at their exit. The default holds
    /// on a busy machine with a debug build. `cargo xtask chaos` requires 99.5 %.
    floor: f64,
    /// Seconds between two consensuses.
    interval: u64,
}

impl Settings {
    fn from_environment() -> Self {
        let seconds = setting("UMBEL_CHAOS_SECONDS", 15);
        Self {
            seed: setting("UMBEL_CHAOS_SEED", 4),
            duration: Duration::from_secs(seconds),
            relays: setting("UMBEL_CHAOS_RELAYS", 24),
            floor: setting("UMBEL_CHAOS_FLOOR", 90.0) / 100.0,
            // Short, so that the relays are listed again soon after the end; longer than the outages in a long run.
            interval: if seconds < 60 { 5 } else { 30 },
        }
    }
}

fn setting<T: FromStr>(name: &str, default: T) -> T {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name}: invalid value {text:?}"))
}

#[test]
#[ignore = "disks that fill need root: cargo xtask test runs it, and cargo xtask chaos for minutes"]
fn requests_succeed_while_relays_fail_and_all_state_survives() {
    // The mount namespace belongs to a thread, and other tests may use this one.
    if let Err(panic) = thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

fn test() {
    let settings = Settings::from_environment();
    let scratch = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("UMBEL_CHAOS_FOLDER").map_or_else(|| scratch.path().to_owned(), Into::into);
    fs::create_dir_all(&folder).unwrap();
    let exits = (settings.relays / 3).max(1);
    println!("seed {}, {} relays, {exits} of them exits, {:?}", settings.seed, settings.relays, settings.duration);
    let folders = Nodes::relay_folders(&folder, settings.relays);
    let disks = Disks::mount(folders.clone());
    if disks.is_none() {
        println!("no disk is filled: small disks need the privilege to mount (root)");
    }
    let began = Instant::now();
    let (mut nodes, socks) = Nodes::start(&folder, settings.relays, exits, settings.interval);
    println!("started in {:.1} s, load {}", began.elapsed().as_secs_f64(), machine_load());

    let server = TargetServer::start();
    let mut strikes = Strikes::new(settings.seed, settings.relays, disks);
    let mut tally = Tally::default();
    run(&settings, socks, &server, &mut nodes, &mut strikes, &mut tally);
    let datagrams = strikes.finish(&nodes);
    println!("{}", tally.table(&strikes, datagrams));

    let restarted = check_state(&mut nodes, &folders, &folder, &server);
    println!("all nodes killed and started again; all relays listed after {:.1} s", restarted.as_secs_f64());
    check(&settings, &tally, &strikes, &server);
}

/// Makes requests and strikes for the duration of the run, and waits for the last outcome.
fn run(
    settings: &Settings,
    socks: SocketAddr,
    server: &TargetServer,
    nodes: &mut Nodes,
    strikes: &mut Strikes,
    tally: &mut Tally,
) {
    let start = Instant::now();
    let outcomes = make_requests(start, settings.duration, socks, server.port);
    let (mut next_sample, mut next_progress) = (start, start + Duration::from_secs(10));
    set_exits(server, nodes);
    let end = start + settings.duration + REQUEST_TIMEOUT + TIMEOUT;
    let (mut finished, mut has_all) = (VecDeque::<Request>::new(), false);
    while !has_all || !finished.is_empty() {
        match outcomes.recv_timeout(TURN) {
            Ok(request) => finished.push_back(request),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                has_all = true;
                thread::sleep(TURN);
            }
        }
        let now = Instant::now();
        while finished.front().is_some_and(|request| now - request.ended > ATTRIBUTION_TIME)
            && let Some(request) = finished.pop_front()
        {
            tally.add(start, &request, server, strikes);
        }
        assert!(now < end, "a request has no outcome");
        if now < start + settings.duration && strikes.turn(now, nodes) {
            set_exits(server, nodes);
        }
        assert!(!nodes.client.has_ended(), "the client ended{}", nodes.client.log_tail());
        if now >= next_sample {
            next_sample += Duration::from_secs(1);
            tally.sample(nodes);
        }
        if now >= next_progress {
            next_progress += Duration::from_secs(10);
            println!("{:4} s  {}", (now - start).as_secs(), tally.progress());
        }
    }
}

/// Starts a request in each [`REQUEST_INTERVAL`]; returns the finished ones. At most 100 are in flight, because each
/// ends after [`REQUEST_TIMEOUT`].
fn make_requests(start: Instant, duration: Duration, socks: SocketAddr, server: u16) -> mpsc::Receiver<Request> {
    let (sender, outcomes) = mpsc::channel();
    thread::spawn(move || {
        for number in 0.. {
            let due = start + REQUEST_INTERVAL * number;
            if due >= start + duration {
                return;
            }
            // The rate of requests is given.
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let sender = sender.clone();
            thread::spawn(move || _ = sender.send(request(socks, server, number)));
        }
    });
    outcomes
}

fn set_exits(server: &TargetServer, nodes: &Nodes) {
    let running = nodes.exits().filter_map(|exit| Some((exit, nodes.relays[exit].pid()?.as_raw())));
    server.set_exits(running.collect());
}

/// Kills all nodes at once and starts them again with their state; returns the time until all relays are listed.
fn check_state(nodes: &mut Nodes, folders: &[impl AsRef<Path>], folder: &Path, server: &TargetServer) -> Duration {
    nodes.kill_all();
    nodes.check_keys();
    let left: usize = folders.iter().map(|folder| temporary_files(folder.as_ref())).sum();
    println!(
        "temporary files left by interrupted writes: {left}, and of the client {}",
        temporary_files(&folder.join("client"))
    );
    let began = Instant::now();
    let socks = nodes.start_all();
    nodes.await_listed(began + TIMEOUT);
    let elapsed = began.elapsed();
    for number in LAST_NUMBER..LAST_NUMBER + LAST_REQUESTS {
        let last = request(socks, server.port, number);
        assert!(matches!(last.outcome, Outcome::Right), "after the restart of all nodes: {last:?}");
    }
    elapsed
}

/// Fails if a requirement is not met.
fn check(settings: &Settings, tally: &Tally, strikes: &Strikes, server: &TargetServer) {
    let Settings { seed, duration, floor, .. } = settings;
    assert!(strikes.ended.is_empty(), "seed {seed}: {}", strikes.ended.join("\n"));
    assert_eq!((tally.wrong, server.wrong_requests()), (0, 0), "seed {seed}: wrong bytes in answers and requests");
    assert_eq!(tally.hung, 0, "seed {seed}: requests beyond {REQUEST_TIMEOUT:?}");
    assert!(tally.attributed() * 10 >= tally.right * 9, "the exits of most requests are known");
    tally.check_memory();
    let kills = strikes.counts.get("killed (SIGKILL)").copied().unwrap_or(0);
    if *duration >= Duration::from_secs(600) {
        assert!(kills >= 100, "seed {seed}: {kills} kills");
    }
    let success = tally.success();
    assert!(success >= *floor, "seed {seed}: {:.2} % right, at least {:.1} % required", success * 100.0, floor * 100.0);
}
