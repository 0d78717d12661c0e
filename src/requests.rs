//! A client's requests beyond plain streams: searches, HTTP requests and Oblivious HTTP.

pub mod http;
pub mod oblivious;
pub mod search;
