//! Input and output of native nodes: sockets, files, DNS, HTTP and the listeners. The protocol core has none of these.

pub(crate) mod binary_http;
pub mod clock;
mod connect;
pub mod connector;
pub(crate) mod delegated;
pub mod directory_client;
pub mod directory_server;
pub(crate) mod exchange;
pub mod exit;
pub mod files;
pub mod http_proxy;
pub mod listener;
pub mod oblivious;
pub(crate) mod outbound;
pub(crate) mod page;
pub mod request;
pub mod resolver;
pub mod searcher;
pub mod socks;
pub mod store;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tls;
pub(crate) mod web;
