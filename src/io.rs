//! Sockets, files, DNS: what the core doesn't do itself. Native only.

pub mod connector;
pub mod http_proxy;
pub mod listener;
pub mod socks;
pub mod stream;
#[cfg(test)]
mod testing;
