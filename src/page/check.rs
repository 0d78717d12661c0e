//! The proxy check: an image that only the client's proxy ports serve. It shows whether a browser uses the overlay.
//!
//! The image's host is an interface-local multicast address (RFC 4291 §2.7) with 96 random bits. Without a proxy, the
//! system refuses to connect to this address, so nothing leaves the machine. With the client's SOCKS or HTTP proxy
//! port, the browser requests the image there, and this module answers instead of an exit. Other sites can't use the
//! check, because the random bits are secret.

use core::{future::poll_fn, net::Ipv6Addr, time::Duration};

use rand::CryptoRng;
use tokio::time::timeout;

use crate::{
    connector::{ConnectError, Connector, Delegated, DelegatedRequest, Isolation},
    io::stream::{Hub, Stream},
    stream::StreamCommand,
    wire::{EndReason, Host, ResolvedAnswer, Target},
};

const PORT: u16 = 80;
/// The key of the only stream of a hub.
const KEY: u64 = 1;
/// Maximum bytes of a request's head.
const MAX_HEAD_LEN: usize = 16 * 1024;
/// Time limit of request and answer together.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
const IMAGE: &str = include_str!("check.svg");

/// The proxy check at its address.
#[derive(Clone, Copy)]
pub(crate) struct ProxyCheck {
    address: Ipv6Addr,
}

impl ProxyCheck {
    /// A check at a random address.
    pub(crate) fn new(rng: &mut impl CryptoRng) -> Self {
        let mut octets = [0; 16];
        rng.fill_bytes(&mut octets);
        let address = (u128::from_be_bytes(octets) & (u128::MAX >> 32)) | (0xFF11_u128 << 112);
        Self { address: Ipv6Addr::from(address) }
    }

    /// The URL of the image.
    pub(super) fn url(self) -> String {
        format!("http://[{}]/check.svg", self.address)
    }

    fn is_target(self, target: &Target) -> bool {
        target.host == Host::Ip(self.address.into()) && target.port == PORT
    }
}

/// A connector that answers requests to the check's address, and passes others to another connector.
#[derive(Clone)]
pub(crate) struct ProxyCheckConnector<C> {
    connector: C,
    check: ProxyCheck,
}

impl<C> ProxyCheckConnector<C> {
    pub(crate) const fn new(connector: C, check: ProxyCheck) -> Self {
        Self { connector, check }
    }
}

impl<C: Connector> Connector for ProxyCheckConnector<C> {
    async fn open(&self, target: Target, isolation: Isolation) -> Result<Stream, ConnectError> {
        if self.check.is_target(&target) {
            return Ok(serve());
        }
        self.connector.open(target, isolation).await
    }

    async fn resolve(&self, host: Host, isolation: Isolation) -> Result<Vec<ResolvedAnswer>, ConnectError> {
        self.connector.resolve(host, isolation).await
    }

    async fn delegate(&self, request: DelegatedRequest) -> Result<Delegated, ConnectError> {
        self.connector.delegate(request).await
    }
}

/// A stream to a task that serves the image.
fn serve() -> Stream {
    let mut hub = Hub::new();
    let stream = hub.open(KEY, MAX_HEAD_LEN);
    tokio::spawn(async move {
        // Dropping the hub at the timeout fails its stream if the stream is still open.
        let _ = timeout(EXCHANGE_TIMEOUT, answer(hub)).await;
    });
    stream
}

async fn answer(mut hub: Hub<u64>) {
    let mut head = Vec::new();
    let mut is_answered = false;
    loop {
        match poll_fn(|cx| hub.poll_command(cx)).await.1 {
            StreamCommand::Write(bytes) if !is_answered => {
                head.extend_from_slice(&bytes);
                is_answered = head.windows(4).any(|end| end == b"\r\n\r\n");
                if is_answered {
                    hub.push(KEY, response().as_bytes());
                    hub.finish(KEY);
                } else if head.len() >= MAX_HEAD_LEN {
                    hub.fail(KEY, EndReason::ResourceLimit);
                    return;
                }
            }
            StreamCommand::Reset(_) => return,
            _ => {}
        }
    }
}

fn response() -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: image/svg+xml\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n\
         Cross-Origin-Resource-Policy: cross-origin\r\nConnection: close\r\n\r\n{IMAGE}",
        IMAGE.len(),
    )
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::io::testing::Direct;

    fn check() -> ProxyCheck {
        ProxyCheck::new(&mut StdRng::seed_from_u64(1))
    }

    #[test]
    fn the_address_is_interface_local_and_random() {
        let address = check().address;
        assert!(address.is_multicast());
        assert_eq!(address.octets()[..4], [0xFF, 0x11, 0, 0]);
        assert_eq!(address.octets()[4..].iter().filter(|byte| **byte == 0).count(), 0, "random");
    }

    #[test]
    fn the_system_refuses_to_connect_to_the_address() {
        let error = std::net::TcpStream::connect((check().address, PORT)).unwrap_err();
        assert_ne!(error.kind(), std::io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_image_is_served_without_an_exit() {
        let direct = Direct::default();
        let checked = ProxyCheckConnector::new(direct.clone(), check());
        let target = Target { host: Host::Ip(check().address.into()), port: PORT };
        let mut stream = checked.open(target, Isolation::of_listener("socks")).await.unwrap();
        stream.write_all(b"GET /check.svg HTTP/1.1\r\nHost: x").await.unwrap();
        stream.write_all(b"\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("</svg>\n"), "{answer}");
        assert!(direct.isolations().is_empty());
    }

    #[tokio::test]
    async fn a_request_with_a_too_long_head_is_not_answered() {
        let checked = ProxyCheckConnector::new(Direct::default(), check());
        let target = Target { host: Host::Ip(check().address.into()), port: PORT };
        let mut stream = checked.open(target, Isolation::of_listener("socks")).await.unwrap();
        let _ = stream.write_all(&[b'x'; MAX_HEAD_LEN]).await;
        assert!(stream.read_to_end(&mut Vec::new()).await.is_err());
    }

    #[tokio::test]
    async fn other_targets_are_passed_to_the_connector() {
        let direct = Direct::default();
        let checked = ProxyCheckConnector::new(direct.clone(), check());
        for (host, port) in [(Host::Ip(check().address.into()), 443), (Host::Name("refused.test".into()), PORT)] {
            assert!(checked.open(Target { host, port }, Isolation::of_listener("socks")).await.is_err());
        }
        assert_eq!(direct.isolations().len(), 2);
    }
}
