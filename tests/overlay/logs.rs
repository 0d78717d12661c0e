//! Logs contain no address, host name or query.

use std::fs;

use super::harness::*;

#[test]
fn a_whole_run_at_debug_level_logs_no_address_host_or_path() {
    let testnet = Testnet::start(&["--log=debug", "--volunteers=1"]);
    let origin = Origin::start();
    let (code, mut stream) = socks(testnet.socks, Some(("somebody", "secret")), 1, "localhost", origin.address.port());
    assert_eq!(code, 0);
    request(&mut stream, 100_000);
    assert!(is_body(&mut stream, 100_000).unwrap());
    assert_eq!(socks(testnet.socks, None, 1, "no-such-name.invalid", 80).0, 2);
    let folder = testnet.folder.path().to_owned();
    let middle_hops: Vec<_> = testnet.first_path[1..].to_vec();
    let logs = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let logs: Vec<_> = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    assert_eq!(logs.len(), 10, "a log of each node");
    assert!(logs.iter().any(|path| path.ends_with("client.log")) && !middle_hops.is_empty());
    let port = origin.address.port().to_string();
    for path in logs {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.is_empty(), "{} was written", path.display());
        for secret in ["127.0.0.1", "localhost", "no-such-name", "somebody", "secret", "::1", port.as_str()] {
            assert!(!text.contains(secret), "{} holds {secret}: {text}", path.display());
        }
        if path.ends_with("client.log") {
            for hop in &middle_hops {
                assert!(!text.contains(hop), "the client's log names a hop behind its guard: {text}");
            }
        }
    }
}
