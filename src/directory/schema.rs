//! Types that `prost` generates from `proto/directory.proto`. Only codecs use them.
//!
//! The messages of signed documents are used in tests only, because the codecs have one type for all kinds.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/umbel.directory.v1.rs"));
