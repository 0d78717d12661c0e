//! The ports for applications: SOCKS5 and HTTP proxy.

pub(crate) mod destinations;
pub mod http_proxy;
mod places;
pub mod socks;
