//! Types that `prost` generates from `proto/delegated.proto`. Only codecs use them.
#![allow(missing_docs, unreachable_pub, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/umbel.delegated.v1.rs"));
