//! A relay's transport by itself: listens, echoes every message, and prints its descriptor.
//!
//! `cargo run --example listen -- [OPTION…] 127.0.0.1:0 [ADDRESS…]` prints one line of JSON with the data for dials. It
//! prints its counts for each line of standard input, and ends with the input. With `--chacha20` it accepts no other
//! cipher suite. With `--source` it sends as much as each link takes, and with `--sink` it echoes nothing.

#[path = "../dial/drive.rs"]
mod drive;

use std::{error::Error, net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use umbel::{
    base::{Lane, LinkEvent, Transmit},
    transport::native::{Certificate, CipherSuite, EndpointConfig, Ice},
};

use drive::{DrivenEndpoint, echo};

/// Bytes of a message of `--source`.
const MESSAGE: usize = 17 << 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (options, addresses): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|text| text.starts_with("--"));
    let has = |option: &str| options.iter().any(|text| text == option);
    let react: fn(LinkEvent, &mut Vec<Transmit>) = match (has("--source"), has("--sink")) {
        (true, _) => flood,
        (_, true) => |_, _| {},
        _ => echo,
    };
    let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let ice = Ice::new("umbelListen", "listenlistenlistenlisten")?;
    let mut config = EndpointConfig::new(Certificate::generate()?);
    config.accept = Some(ice.clone());
    if has("--chacha20") {
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
            () = driven.turn(Duration::from_millis(200), react) => {}
        }
    }
}

/// Sends as many bytes as the link has room for, over all lanes.
fn flood(event: LinkEvent, outputs: &mut Vec<Transmit>) {
    if let LinkEvent::Room { link, bytes } = event {
        let lanes = [0, 1, 2, 3].into_iter().filter_map(Lane::new).cycle();
        let messages = lanes.take(bytes.div_ceil(MESSAGE));
        outputs.extend(messages.map(|lane| Transmit::Message { link, lane, message: vec![1; MESSAGE].into() }));
    }
}
