//! A relay's transport by itself: listens, echoes every message, and prints its descriptor.
//!
//! `cargo run --example listen -- [--chacha20] 127.0.0.1:0 [ADDRESS…]` prints one line of JSON with the data for dials. It
//! prints its counts for each line of standard input, and ends with the input. With `--chacha20` it accepts no other
//! cipher suite.

#[path = "../dial/drive.rs"]
mod drive;

use std::{error::Error, net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use umbel::transport::native::{Certificate, CipherSuite, EndpointConfig, Ice};

use drive::{DrivenEndpoint, echo};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (options, addresses): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|text| text == "--chacha20");
    let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let ice = Ice::new("umbelListen", "listenlistenlistenlisten")?;
    let mut config = EndpointConfig::new(Certificate::generate()?);
    config.accept = Some(ice.clone());
    if !options.is_empty() {
        config.cipher_suites = vec![CipherSuite::ChaCha20Poly1305];
    }
    let mut driven = DrivenEndpoint::new(config, &addresses);

    let fingerprint: Vec<String> = driven.endpoint.fingerprint().iter().map(|byte| format!("{byte:02X}")).collect();
    let addresses: Vec<_> = driven
        .listening()
        .iter()
        .map(|address| json!({ "ip": address.ip().to_string(), "port": address.port() }))
        .collect();
    let (ufrag, password) = (ice.ufrag(), ice.password());
    let fingerprint = fingerprint.join(":");
    println!("{}", json!({ "addresses": addresses, "ufrag": ufrag, "password": password, "fingerprint": fingerprint }));

    let mut lines = BufReader::new(stdin()).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => {
                if line?.is_none() {
                    return Ok(());
                }
                let counts = driven.endpoint.counts();
                println!("{}", json!({ "links": counts.links, "halfOpen": counts.half_open }));
            }
            () = driven.turn(Duration::from_millis(200), echo) => {}
        }
    }
}
