//! Delegated requests: searches and HTTP requests that an exit performs for a client, and their messages.
//!
//! Types without I/O, for both ends:
//!
//! * an exit's offer ([`Offer`]), and the request that a circuit's exit must perform ([`Delegation`]);
//! * queries and answers ([`SearchRequest`], [`SearchAnswer`]) with their padded frames ([`frame`]);
//! * HTTP requests and responses ([`message`], [`binary_http`]);
//! * an exit's [`limits`], and statistics of exits by engine ([`ExitStatistics`]);
//! * the client's and the exit's side of a search ([`query`], [`service`]).
//!
//! `exit::delegated` performs requests at the exit; `engine` has the formats of engines. Governed by
//! `proto/09-delegated.md`. Threats addressed: neither the engine nor the exit receives the client's address. The exit
//! isn't trusted, so both ends check and clean answers by this module.

pub mod binary_http;
pub mod clean_url;
mod exit_statistics;
mod exits;
pub mod fields;
pub mod frame;
pub mod limits;
pub mod message;
mod offer;
pub mod query;
mod refusal;
mod schema;
mod search;
pub mod service;
pub mod text;
pub mod url;
#[cfg(test)]
mod vectors;

pub use self::{
    exit_statistics::{BLOCK_DURATION, ExitCounts, ExitStatistics},
    exits::{FailedTry, FailedTryReason, Offers, engines, exits_offering},
    offer::{Delegation, EngineName, HttpOffer, MAX_ENGINES, MAX_HOSTS, Offer},
    refusal::Refusal,
    search::{
        Block, MAX_PAGE, MAX_RESULTS, MAX_TERMS_LEN, SearchAnswer, SearchError, SearchRefusal, SearchRequest,
        SearchResult,
    },
};
pub use crate::wire::Service;
