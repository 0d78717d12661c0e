//! Processes of the overlay: the protocol core joined with sockets, files and the command line.
//!
//! This module has configuration, assembly and life cycle of a node. The core ([`crate::client`], [`crate::relay`],
//! [`crate::directory`]) has the protocol, [`crate::io`] the rest of the input and output.

mod bench;
pub mod cli;
pub mod client;
mod control;
mod directory;
mod drive;
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

/// Why a command failed; determines the exit status.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The operation failed. Exit status 1.
    #[error("{0}")]
    Failed(String),
    /// The command line, a configuration or a key file is wrong. Exit status 2.
    #[error("{0}")]
    Usage(String),
    /// The network can't be reached. Exit status 3.
    #[error("{0}")]
    Unreachable(String),
}

impl Failure {
    /// `error` as a failed operation.
    fn failed(error: impl core::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// `error` as an error of the configuration or of a file.
    fn usage(error: impl core::fmt::Display) -> Self {
        Self::Usage(error.to_string())
    }

    /// The exit status of the process.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
        }
    }
}
