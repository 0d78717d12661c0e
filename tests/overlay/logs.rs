//! Logs contain no address, host name or query.

use std::{fs, path::Path, process::Stdio, time::Instant};

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
    let client_logs = [folder.join("client.log"), folder.join("other-client.log")];
    testnet.kill(&testnet.relay_folder(&testnet.first_path[0]));
    let _client = client_with_the_same_guards(&testnet, &client_logs[1]);
    await_true("a client fails to dial the killed guard", Instant::now() + TIMEOUT, || {
        fs::read_to_string(&client_logs[1]).unwrap().contains("a guard can't be reached")
    });
    let relays = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    let relays = relays.filter(|entry| entry.path().join("identity.key").exists());
    let relays: Vec<_> = relays.map(|entry| identity_in(&entry.path())).collect();
    assert_eq!(relays.len(), 8, "seven relays and a volunteer");
    let logs = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let logs: Vec<_> = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    assert_eq!(logs.len(), 11, "a log of each node");
    assert!(client_logs.iter().all(|log| logs.contains(log)));
    let port = origin.address.port().to_string();
    for path in logs {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.is_empty(), "{} was written", path.display());
        for secret in ["127.0.0.1", "localhost", "no-such-name", "somebody", "secret", "::1", port.as_str()] {
            assert!(!text.contains(secret), "{} holds {secret}: {text}", path.display());
        }
        if client_logs.contains(&path) {
            for relay in &relays {
                assert!(!text.contains(&relay[..6]), "the client's log names a relay: {text}");
            }
        }
    }
}

/// Starts a client with a copy of the guard sample of the testnet's client; its log is written to `log`.
fn client_with_the_same_guards(testnet: &Testnet, log: &Path) -> Running {
    let folder = testnet.folder.path().join("other-client");
    fs::create_dir(&folder).unwrap();
    fs::copy(testnet.folder.path().join("client/guards"), folder.join("guards")).unwrap();
    let client = umbel()
        .args(["client", "--log=debug", "--socks=127.0.0.1:0", "--http=127.0.0.1:0", "--page=127.0.0.1:0"])
        .args(testnet.network())
        .arg("--data-dir")
        .arg(&folder)
        .stdout(Stdio::null())
        .stderr(fs::File::create(log).unwrap())
        .spawn();
    Running(client.unwrap())
}
