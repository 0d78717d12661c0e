//! The ports for applications: SOCKS5 and HTTP proxy.

pub mod http_proxy;
mod places;
pub mod socks;
