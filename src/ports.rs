//! The ports for applications: a SOCKS proxy and an HTTP proxy.

mod accept;
pub(crate) mod destinations;
pub mod http_proxy;
mod places;
pub mod socks;
