//! Umbel: an anonymising relay overlay over WebRTC data channels.
//!
//! A [`Client`] opens streams over a guard, one or two middles and an exit. Each relay removes one layer of encryption.
//! The guard sees the client's address and not the target. The exit sees the target and not the client's address. An
//! exit can also search or perform an HTTP request for the client. `threat-model.md` states the protections and their
//! limits.
//!
//! # Examples
//!
//! | program | shows | types |
//! |---|---|---|
//! | `examples/stream.rs` | a stream to a host and port, in place of a TCP stream | [`Client`], [`Stream`] |
//! | `examples/search.rs` | a search by an exit | [`SearchQuery`], [`Found`] |
//! | `examples/request.rs` | an HTTP request that an exit performs | [`Client::request`], [`ResponseBody`] |
//! | `examples/relay.rs` | a relay inside an application | [`EmbeddedRelay`], [`RelayConfig`] |
//!
//! `umbel testnet` starts a network on one machine and prints the options that all four programs take. This code
//! opens a stream:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use umbel::{Client, ClientConfig};
//!
//! let client = Client::bootstrap(ClientConfig {
//!     directories: vec!["http://192.0.2.1:9360".to_owned()],
//!     authorities: vec!["the key that `umbel keys directory` shows".parse()?],
//!     // Keeps the guards between starts.
//!     data_dir: Some("client".into()),
//! })
//! .await?;
//!
//! let mut stream = client.open("example.org", 80).await?;
//! stream.write_all(b"GET / HTTP/1.0\r\nHost: example.org\r\n\r\n").await?;
//! let mut page = Vec::new();
//! stream.read_to_end(&mut page).await?;
//! # Ok(()) }
//! ```
//!
//! The interface needs a tokio runtime and the feature `native`, which is on by default. The crate logs to `tracing`.
//! Addresses, host names and queries are redacted in the log and in `Debug` output. The `Debug` output of
//! [`ClientConfig`] and [`RelayConfig`] contains the configured addresses.
//!
//! # Layout
//!
//! The items below are the interface for applications. The modules are the implementation and may change in any
//! version: a protocol core without I/O (such as [`circuit`], [`relay`] and [`client`]), its drivers (such as
//! [`transport`] and [`sim`]), and the assembly of nodes. `docs/architecture.md` explains them, and `proto/` specifies
//! the protocol.
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod base;
#[cfg(feature = "browser")]
#[allow(clippy::disallowed_methods, reason = "code with I/O reads the clock and generates randomness")]
pub mod browser;
pub mod channel;
pub mod circuit;
pub mod client;
#[cfg(feature = "native")]
pub mod connector;
pub mod crypto;
pub mod delegated;
pub mod directory;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "code with I/O reads the clock and generates randomness")]
pub mod directory_http;
#[cfg(any(feature = "native", feature = "browser"))]
pub mod engine;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "code with I/O reads the clock and generates randomness")]
pub mod exit;
pub mod exit_policy;
pub mod flow;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod handshake;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "code with I/O reads the clock and generates randomness")]
pub(crate) mod http_exchange;
#[cfg(any(feature = "browser-tls", all(test, feature = "native")))]
pub mod https;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "code with I/O reads the clock and generates randomness")]
pub mod io;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "code with I/O reads the clock and generates randomness")]
pub mod node;
pub mod onion;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "code with I/O reads the clock and generates randomness")]
pub(crate) mod page;
pub mod path;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "code with I/O reads the clock and generates randomness")]
pub mod ports;
pub mod relay;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "code with I/O reads the clock and generates randomness")]
pub mod requests;
pub mod sim;
pub mod stream;
pub mod transport;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "code with I/O reads the clock and generates randomness")]
pub(crate) mod web;
pub mod wire;

#[cfg(feature = "native")]
#[doc(inline)]
pub use crate::{
    base::RelayId,
    client::StreamFailure,
    connector::{ConnectError, Hop},
    delegated::{EngineName, FailedTry, FailedTryReason, SearchError, SearchRefusal, SearchResult},
    directory::{AuthorityId, NotAnAuthority},
    http_exchange::{body::OutgoingBody, refusal::Refusal},
    io::{stream::Stream, tls::TlsError},
    node::{
        client::{BootstrapError, Client, ClientConfig},
        relay::{EmbeddedRelay, RelayConfig, RelayError},
    },
    relay::RelayStatistics,
    requests::{
        http::{RequestError, ResponseBody},
        oblivious::ObliviousError,
        search::{Comparison, Found, QueryError, Route, SearchFailure, SearchQuery},
    },
    wire::EndReason,
};
