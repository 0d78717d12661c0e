//! The programs of `examples/`, run against a testnet as their documentation describes.

use std::{
    process::{Command, Output, Stdio},
    time::Instant,
};

use nix::sys::signal::{Signal, kill};

use super::{
    engines::{ScriptedServer, ok},
    harness::*,
};

#[test]
fn each_example_works_as_documented() {
    // One testnet serves all parts; each part is a function, identified by its name in a failure's backtrace.
    let testnet = &Testnet::start(&[]);
    a_stream_fetches_a_page(testnet);
    a_search_prints_the_results_of_the_engine_in_its_order(testnet);
    a_request_is_performed_by_an_exit(testnet);
    an_embedded_relay_forwards_circuits_of_others(testnet);
}

#[test]
fn the_error_of_an_example_for_an_invalid_key_names_the_command_for_keys() {
    for name in ["stream", "search", "request", "relay"] {
        let output = example(name).args(["--directory=http://127.0.0.1:1", "--authority=none"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {text}");
        assert!(text.contains("umbel keys directory"), "{name}: {text}");
    }
}

fn a_stream_fetches_a_page(testnet: &Testnet) {
    let site = ScriptedServer::start(|path| ok("text/plain", &format!("the page {path}")));
    let port = site.address.port().to_string();
    let output = finish(example("stream").args(testnet.network()).args(["localhost", &port, "/one"]));
    assert!(text(&output).ends_with("\r\n\r\nthe page /one"), "{}", text(&output));
}

fn a_search_prints_the_results_of_the_engine_in_its_order(testnet: &Testnet) {
    let control = format!("--control={}", testnet.page);
    let expected = finish(umbel().args(["search", &control, "--json", "guard", "sample"]));
    let expected: serde_json::Value = serde_json::from_str(text(&expected)).unwrap();
    let results = expected["results"].as_array().unwrap();
    let expected: Vec<String> =
        (1..).zip(results).map(|(number, result)| format!("{number}. {}", result["title"].as_str().unwrap())).collect();
    assert!(!expected.is_empty());
    let output = finish(example("search").args(testnet.network()).args(["guard", "sample"]));
    let numbered = |line: &&str| line.split_once(". ").is_some_and(|(number, _)| number.parse::<u16>().is_ok());
    let printed: Vec<&str> = text(&output).lines().filter(numbered).collect();
    assert_eq!(printed, expected);
    let path = text(&output).lines().last().unwrap();
    assert_eq!(path.matches(" → ").count(), 2, "three relays: {path}");
}

fn a_request_is_performed_by_an_exit(testnet: &Testnet) {
    let site = ScriptedServer::start(|path| ok("text/plain", &format!("the answer to {path}")));
    let output = finish(example("request").args(testnet.network()).arg(format!("http://{}/two", site.address)));
    assert_eq!(text(&output), "the answer to /two");
    assert!(String::from_utf8_lossy(&output.stderr).contains("200 OK"), "{output:?}");
}

fn an_embedded_relay_forwards_circuits_of_others(testnet: &Testnet) {
    const LENGTH: u64 = 1_000_000;
    let folder = tempfile::tempdir().unwrap();
    let mut command = example("relay");
    command.args(testnet.network()).arg("--data-dir").arg(folder.path());
    let mut relay = ChildProcess(command.stdout(Stdio::piped()).spawn().unwrap());
    let lines = lines_of(relay.0.stdout.take().unwrap());
    let next_line = |start: &str| {
        let end = Instant::now() + TIMEOUT;
        loop {
            let line = lines.recv_timeout(end.saturating_duration_since(Instant::now())).expect(start);
            if let Some(rest) = line.strip_prefix(start) {
                return rest.to_owned();
            }
        }
    };
    let identity = next_line("relay ");
    next_line("ready");
    let client = testnet.client(&["--middle", &identity]);
    let target = TargetServer::start();
    let mut stream = connect(client.socks, target.address);
    request(&mut stream, LENGTH);
    assert!(is_body(&mut stream, LENGTH).unwrap());
    kill(pid(&relay.0), Signal::SIGINT).unwrap();
    let cells: u64 = next_line("forwarded ").split_whitespace().next().unwrap().parse().unwrap();
    assert!(cells > LENGTH / 1_024, "the body went over the relay: {cells} cells");
    assert!(wait_for_end(&mut relay.0).success());
}

/// Runs a program, which must succeed; returns the output.
fn finish(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}
