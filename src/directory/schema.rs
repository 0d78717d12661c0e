//! Types that `prost` generates from `proto/directory.proto`. Only codecs use them.
#![allow(missing_docs, unreachable_pub, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/umbel.directory.v1.rs"));
