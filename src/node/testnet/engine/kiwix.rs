//! `kiwix-serve` over a ZIM file, as the testnet's search engine, with a corpus of the user's choice.

use core::{net::SocketAddr, time::Duration};
use std::{io, net::TcpListener, path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::node::Failure;

const PROGRAM: &str = "kiwix-serve";
/// The description of Kiwix that is shipped for operators.
const SHIPPED: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/engines/kiwix.xml"));
/// The address of Kiwix in [`SHIPPED`].
const SHIPPED_ADDRESS: &str = "127.0.0.1:8080";
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum starts. A start fails if another program takes the chosen port before Kiwix opens it.
const MAX_ATTEMPTS: usize = 3;

/// A running `kiwix-serve`. A drop stops the program, which also ends with the testnet's process.
pub(in super::super) struct Kiwix {
    address: SocketAddr,
    zim: String,
    _process: Child,
}

impl Kiwix {
    /// Starts Kiwix over `zim` on a free port of 127.0.0.1 and waits until it prints its address.
    ///
    /// # Errors
    /// When Kiwix isn't installed, or does not serve the file.
    pub(super) async fn start(zim: &Path) -> Result<Self, Failure> {
        if !zim.is_file() {
            return Err(Failure::usage(format!("--zim: {} is not a file", zim.display())));
        }
        for _ in 0..MAX_ATTEMPTS {
            if let Some(kiwix) = Self::attempt(zim).await.map_err(start_failure)? {
                return Ok(kiwix);
            }
        }
        Err(Failure::failed(format!(
            "{PROGRAM} did not serve {} in {MAX_ATTEMPTS} attempts: check that the file is a ZIM file",
            zim.display()
        )))
    }

    /// Starts Kiwix once; `None` if Kiwix ended or did not print its address in time.
    async fn attempt(zim: &Path) -> io::Result<Option<Self>> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut process = Command::new(PROGRAM)
            .args([format!("--address={}", address.ip()), format!("--port={}", address.port())])
            .arg(format!("--attachToProcess={}", std::process::id()))
            .arg(zim)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C reaches only the testnet, which then ends the processes in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let Some(output) = process.stdout.take() else { return Ok(None) };
        let mut lines = BufReader::new(output).lines();
        let running = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains(&address.to_string()) {
                    return true;
                }
            }
            false
        };
        Ok(timeout(START_TIMEOUT, running).await.unwrap_or(false).then(|| {
            let zim = zim.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Self { address, zim, _process: process }
        }))
    }

    /// A description of the engine for the user.
    pub(super) fn to_text(&self) -> String {
        format!("Kiwix over {}, http://{}", self.zim, self.address)
    }

    /// The OpenSearch description of this instance: the shipped description with another address.
    pub(super) fn description(&self) -> String {
        SHIPPED.replace(SHIPPED_ADDRESS, &self.address.to_string())
    }
}

fn start_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => Failure::failed(format!(
            "{PROGRAM} is not installed: install kiwix-tools, or omit --zim to search Umbel's own documentation"
        )),
        _ => Failure::system(format!("can't start {PROGRAM}"))(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_description_has_the_replaced_address() {
        assert!(SHIPPED.contains(&format!("template=\"http://{SHIPPED_ADDRESS}/search?")));
    }
}
