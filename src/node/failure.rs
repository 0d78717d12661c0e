//! The failure of a command: the failed action, the cause, and the exit status.

use std::io;

use crate::{
    directory_http::{client::DirectoryError, store::StoreError},
    io::{files::FileError, listener::ListenError},
    transport::native::{CertificateError, EndpointError, SocketError},
};

/// A cause of another type, or a message.
type Cause = Box<dyn core::error::Error + Send + Sync>;

/// The failure of a command, which determines the exit status.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line or the configuration is invalid. Exit status 2.
    #[error(transparent)]
    Usage(Cause),
    /// The value of an option, or a file that an option names, is invalid. Exit status 2.
    #[error("{subject}: {source}")]
    Invalid {
        /// The option or the file.
        subject: String,
        /// The cause.
        source: Cause,
    },
    /// A file of the node's folder can't be used. Exit status 2.
    #[error(transparent)]
    Folder(#[from] FileError),
    /// The directory's store can't be opened. Exit status 2.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The configured directories are invalid. Exit status 2.
    #[error(transparent)]
    Directories(#[from] DirectoryError),
    /// A local port can't be opened. Exit status 2 for an address that isn't allowed, else 1.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The certificate can't be generated (exit status 1) or is malformed (2).
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The UDP sockets can't be opened. Exit status 1.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The transport can't be set up. Exit status 1.
    #[error("the transport can't be set up: {0}")]
    Transport(#[from] EndpointError),
    /// An operation of the system failed. Exit status 1.
    #[error("{action}: {source}")]
    System {
        /// The failed action, such as "can't read the file".
        action: String,
        /// The system's error.
        source: io::Error,
    },
    /// The operation failed. Exit status 1.
    #[error(transparent)]
    Failed(Cause),
    /// The network can't be reached. Exit status 3.
    #[error(transparent)]
    Unreachable(Cause),
}

impl Failure {
    /// A failed operation.
    pub(super) fn failed(cause: impl Into<Cause>) -> Self {
        Self::Failed(cause.into())
    }

    /// An invalid command line or configuration.
    pub(super) fn usage(cause: impl Into<Cause>) -> Self {
        Self::Usage(cause.into())
    }

    /// An invalid value or file; `subject` is the option or the file.
    pub(super) fn invalid<E: Into<Cause>>(subject: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |cause| Self::Invalid { subject: subject.into(), source: cause.into() }
    }

    /// A failed operation of the system, with `action` as the first part of the message.
    pub(super) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action: action.into(), source }
    }

    /// The exit status of the process.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::Invalid { .. }
            | Self::Folder(_)
            | Self::Store(_)
            | Self::Directories(_)
            | Self::Listen(ListenError::NotLoopback { .. })
            | Self::Certificate(CertificateError::Malformed) => 2,
            Self::Listen(ListenError::Taken { .. } | ListenError::Io { .. })
            | Self::Certificate(CertificateError::Generate)
            | Self::Socket(_)
            | Self::Transport(_)
            | Self::System { .. }
            | Self::Failed(_) => 1,
            Self::Unreachable(_) => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use core::error::Error as _;

    use super::*;

    #[test]
    fn each_failure_has_its_exit_status_and_its_cause() {
        let io = || io::Error::from(io::ErrorKind::AddrInUse);
        let system = Failure::system("can't listen")(io());
        assert_eq!(system.to_string(), format!("can't listen: {}", io()));
        let invalid = Failure::invalid("exit")(io());
        assert!(system.source().is_some() && invalid.source().is_some());
        for (failure, status) in [
            (system, 1),
            (Failure::failed("no answer"), 1),
            (CertificateError::Generate.into(), 1),
            (invalid, 2),
            (Failure::usage("no such option"), 2),
            (CertificateError::Malformed.into(), 2),
            (Failure::Unreachable("no circuit".into()), 3),
        ] {
            assert_eq!(failure.status(), status, "{failure}");
        }
    }
}
