//! The ports for applications: a SOCKS proxy and an HTTP proxy.

pub mod http_proxy;
pub mod socks;
