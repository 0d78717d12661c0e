//! The directory over HTTP: server, persistent store and client (`proto/07-directory.md` §7).

pub mod client;
pub mod server;
pub mod store;
mod tag;
