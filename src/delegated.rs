//! Delegated requests: what an exit does on a client's behalf, and what the two say to each other about it.
//!
//! Pure vocabulary for both sides: what an exit offers ([`Offer`]), what a circuit's exit must offer ([`Delegation`]),
//! queries and answers ([`SearchRequest`], [`SearchAnswer`]) with their padded frames ([`frame`]), an exit's [`limits`] and its side
//! of a search ([`service`]), and how each exit has fared with each engine ([`Fares`]). The exit's deeds are in `io::delegated`, the engines in `engine`. Governed by
//! `proto/09-delegated.md`. Threats addressed: the engine never learns who asks, the exit never does either; and the
//! exit is not trusted with what it answers, so all of it is checked and cleaned here, on both sides.

mod exits;
mod fares;
pub mod fields;
pub mod frame;
pub mod limits;
pub mod link;
pub mod message;
mod offer;
mod refusal;
mod schema;
mod search;
pub mod service;
pub mod text;
pub mod url;
#[cfg(test)]
mod vectors;

pub use self::{
    exits::{Miss, MissReason, Offers, engines},
    fares::{BLOCKED_FOR, Fare, Fares},
    offer::{Delegation, EngineName, MAX_ENGINES, MAX_HOSTS, Offer, Requests},
    refusal::Refusal,
    search::{
        Block, MAX_PAGE, MAX_RESULTS, MAX_TERMS_LEN, SearchAnswer, SearchError, SearchRefusal, SearchRequest,
        SearchResult,
    },
};
pub use crate::wire::Service;
