//! The client's side of requests that exits perform: searches, HTTP requests, and messages of Oblivious HTTP.

pub mod http;
pub mod oblivious;
pub mod search;
