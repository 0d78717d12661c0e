//! Starting, checking and ending a testnet.

use std::{
    net::TcpListener,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use super::harness::*;

#[test]
fn the_check_passes_and_says_so() {
    let output = umbel()
        .args(["testnet", "--check", "--socks=127.0.0.1:0", "--http=127.0.0.1:0", "--page=127.0.0.1:0"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("Check passed"), "{text}");
    let circuit = text.lines().find(|line| line.contains(" circuit ")).expect("the first circuit is shown");
    assert_eq!(circuit.matches("ms)").count(), 3, "three hops, each with its time: {circuit}");
}

#[test]
fn a_taken_port_is_an_error_that_says_which_and_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("--socks={}", taken.local_addr().unwrap());
    let output = umbel().args(["testnet", &port, "--http=127.0.0.1:0", "--page=127.0.0.1:0"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains(&taken.local_addr().unwrap().to_string()) && text.contains("--socks"), "{text}");
}

#[test]
fn ctrl_c_leaves_no_process_behind() {
    let testnet = Testnet::start(&["--relays=3", "--exits=1"]);
    let folder = testnet.folder.path().display().to_string();
    assert!(testnet.stop());
    assert_eq!(processes_naming(&folder), 0);
}

#[test]
fn a_testnet_killed_at_any_moment_of_its_start_leaves_no_process_and_no_folder() {
    for milliseconds in [20, 200, 500, 900, 1500] {
        let temporary = tempfile::tempdir().unwrap();
        let mut process = umbel()
            .args(["testnet", "--socks=127.0.0.1:0", "--http=127.0.0.1:0", "--page=127.0.0.1:0", "--relays=4"])
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The moment of the kill is what varies here; nothing is waited for.
        std::thread::sleep(Duration::from_millis(milliseconds));
        kill(pid(&process), Signal::SIGKILL).unwrap();
        process.wait().unwrap();
        let name = temporary.path().display().to_string();
        let end = Instant::now() + LIMIT;
        await_true("no process is left", end, || processes_naming(&name) == 0);
        await_true("no folder is left", end, || temporary.path().read_dir().unwrap().next().is_none());
    }
}

fn processes_naming(folder: &str) -> usize {
    processes().iter().filter(|(_, arguments)| arguments.iter().any(|argument| argument.contains(folder))).count()
}

#[test]
fn more_exits_than_relays_is_bad_usage() {
    let output = umbel().args(["testnet", "--relays=3", "--exits=4"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_port_open_to_other_machines_needs_leave() {
    let output = umbel()
        .args(["client", "--socks=0.0.0.0:0", "--directory=http://127.0.0.1:1", "--authority"])
        .arg("a".repeat(52))
        .args(["--data-dir"])
        .arg(tempfile::tempdir().unwrap().path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--allow-remote"), "{text}");
}
