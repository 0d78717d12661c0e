//! Umbel: an anonymising relay overlay over WebRTC data channels.
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod base;
#[cfg(feature = "browser")]
#[allow(clippy::disallowed_methods, reason = "it drives the core and passes time and randomness to it")]
pub mod browser;
pub mod channel;
pub mod circuit;
pub mod client;
pub mod crypto;
pub mod delegated;
pub mod directory;
#[cfg(any(feature = "native", feature = "browser"))]
pub mod engine;
pub mod exit;
pub mod flow;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod handshake;
#[cfg(any(feature = "browser-tls", all(test, feature = "native")))]
pub mod https;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "it drives the core and passes time and randomness to it")]
pub mod io;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "it drives the core and passes time and randomness to it")]
pub mod node;
pub mod onion;
pub mod path;
pub mod relay;
pub mod sim;
pub mod stream;
pub mod transport;
pub mod wire;

#[cfg(feature = "native")]
pub use crate::{
    client::StreamFailure,
    delegated::{EngineName, SearchResult},
    directory::AuthorityId,
    io::{
        connector::ConnectError,
        delegated::refusal::Refusal,
        oblivious::ObliviousError,
        request::{RequestError, ResponseBody},
        searcher::{Comparison, Found, SearchFailure, SearchQuery},
        stream::Stream,
        tls::TlsError,
    },
    node::client::{BootstrapError, Client, ClientConfig},
};
