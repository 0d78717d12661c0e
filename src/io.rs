//! Input and output of native nodes: sockets, files, DNS, TLS and byte streams. The protocol core has none of these.

pub mod clock;
pub(crate) mod connect;
pub(crate) mod connections;
pub mod files;
pub mod listener;
pub mod resolver;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tls;
