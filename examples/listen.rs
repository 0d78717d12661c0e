//! A relay's transport by itself: listens, echoes every message, and says how to dial it.
//!
//! `cargo run --example listen -- 127.0.0.1:0 [ADDRESS…]` prints a line of JSON that a dialler needs (for
//! `tests/browser`), then its counts for each line of its input, and ends with its input.

#[path = "../tests/dial/drive.rs"]
mod drive;

use std::{error::Error, net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use umbel::transport::native::{Certificate, EndpointConfig, Ice};

use drive::{Driven, echo};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let addresses: Vec<SocketAddr> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let ice = Ice::new("umbelListen", "listenlistenlistenlisten")?;
    let mut config = EndpointConfig::new(Certificate::generate()?);
    config.accept = Some(ice.clone());
    let mut driven = Driven::new(config, &addresses);

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
