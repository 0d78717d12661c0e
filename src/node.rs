//! Processes of the overlay: the protocol core joined with sockets, files and the command line.
//!
//! This module has configuration, assembly and life cycle of a node. The core ([`crate::client`], [`crate::relay`],
//! [`crate::directory`]) has the protocol; its drivers (such as [`crate::io`], [`crate::exit`] and [`crate::ports`])
//! have all other input and output.

mod bench;
pub mod cli;
pub mod client;
mod control;
mod descriptors;
mod directory;
mod drive;
mod failure;
mod fetch;
mod keys;
mod logging;
mod network;
mod options;
pub mod relay;
mod report;
mod search;
mod supervised;
mod testnet;
mod web;

pub use failure::Failure;
