//! Types that `prost` generates from `proto/directory.proto`, for encoding and decoding. The public API has types of
//! its own.
//!
//! Tests alone use `SignedConsensus`, `SignedVolunteer`, `SignedPresence` and `SignedVolunteerList`: outside tests, the
//! envelope types of `document` and `statement` decode them for all kinds.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/umbel.directory.v1.rs"));
