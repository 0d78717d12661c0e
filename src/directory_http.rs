//! The directory over HTTP: server, store of its documents, and client.

pub mod client;
pub mod server;
pub mod store;
mod tag;
