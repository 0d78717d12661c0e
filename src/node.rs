//! Nodes: the protocol core joined with sockets, files and the command line, as processes.
//!
//! Owns configuration, assembly and life cycle; what a node does on the wire is the core's
//! ([`crate::client`], [`crate::relay`], [`crate::directory`]), what it does outside is [`crate::io`]'s.

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
mod relay;
mod report;
mod search;
mod supervised;
mod testnet;
mod web;

/// Why a command ended without success; decides the exit status.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It was tried and failed. Exit status 1.
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
    /// `error` as a failure of what was tried.
    fn failed(error: impl core::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// `error` as a fault of the configuration or of a file.
    fn usage(error: impl core::fmt::Display) -> Self {
        Self::Usage(error.to_string())
    }

    /// The process's exit status.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
        }
    }
}
