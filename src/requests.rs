//! The requests of a client: searches, HTTP requests and Oblivious HTTP.

pub mod http;
pub mod oblivious;
pub mod search;
