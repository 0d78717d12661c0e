//! Listeners of the local ports for applications: address checks, and a cap on concurrent connections.
//!
//! A program that reaches such a port uses the overlay as this user. So ports listen on loopback unless configured
//! otherwise. At its cap, and without free file descriptors, a port still accepts, and refuses by a reply of its
//! protocol (`accept_or_shed`): an application whose connection stays in the backlog would hang.

mod shed;
#[cfg(test)]
mod tests;

use core::{future::Future, time::Duration};
use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use shed::{SpareDescriptors, is_out_of_descriptors};
pub(crate) use shed::{answer_and_close, refuse_http};

use super::stream::reset_on_close;

/// Cap on connections that are refused by a reply concurrently. Further connections are reset.
const MAX_SHEDDING: usize = 64;
/// Time limit for the refusal of a connection.
const SHED_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed `accept`, which usually means that this process has too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port for applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalPort {
    /// SOCKS5.
    Socks,
    /// HTTP proxy.
    Http,
    /// The search page.
    Page,
}

impl LocalPort {
    /// The name in messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Socks => "SOCKS",
            Self::Http => "HTTP proxy",
            Self::Page => "search page's",
        }
    }

    const fn flag(self) -> &'static str {
        match self {
            Self::Socks => "--socks",
            Self::Http => "--http",
            Self::Page => "--page",
        }
    }
}

/// Reason for which a local port can't be opened. The text states the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is reachable from other machines.
    #[error(
        "other machines could reach the {} port at {address}: choose a loopback address with {} 127.0.0.1:{}, or add \
         --allow-remote to permit that",
        port.name(), port.flag(), address.port()
    )]
    NotLoopback {
        /// The port.
        port: LocalPort,
        /// The requested address.
        address: SocketAddr,
    },
    /// Another program uses the address.
    #[error("another program uses the {} port {address}; choose another port with {} ADDRESS:PORT", port.name(), port.flag())]
    Taken {
        /// The port.
        port: LocalPort,
        /// The requested address.
        address: SocketAddr,
    },
    /// Another system error.
    #[error("the {} port can't listen on {address} ({source}); choose another address with {} ADDRESS:PORT", port.name(), port.flag())]
    Io {
        /// The port.
        port: LocalPort,
        /// The requested address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// Checks whether `port` may listen on `address`.
///
/// # Errors
/// When the address isn't a loopback address, unless `allow_remote` is set.
pub const fn check_address(port: LocalPort, address: SocketAddr, allow_remote: bool) -> Result<(), ListenError> {
    if allow_remote || address.ip().to_canonical().is_loopback() {
        Ok(())
    } else {
        Err(ListenError::NotLoopback { port, address })
    }
}

/// Opens `port` on `address`.
///
/// # Errors
/// When [`check_address`] rejects the address, another program uses the address, or a system call fails.
pub async fn listen(port: LocalPort, address: SocketAddr, allow_remote: bool) -> Result<TcpListener, ListenError> {
    check_address(port, address, allow_remote)?;
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken { port, address },
        _ => ListenError::Io { port, address, source },
    })
}

/// Accepts connections without end and runs `serve` for each. At most `cap` run concurrently; further connections wait
/// in the backlog. Dropping the future ends all connections.
pub(crate) async fn accept_each<F>(listener: TcpListener, cap: usize, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(cap));
    let mut tasks = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((socket, _)) => {
                // Nagle's algorithm would delay the last piece of each answer until an acknowledgement.
                let _ = socket.set_nodelay(true);
                let serving = serve(socket);
                tasks.spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(kind = ?error.kind(), "can't accept a connection; retrying");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Accepts connections without end. Runs `serve` for at most `cap` connections concurrently. Runs `shed`, which refuses
/// by a reply, for each further connection, and for connections accepted without free file descriptors. Dropping the
/// future ends all connections.
pub(crate) async fn accept_or_shed<F, S>(
    listener: TcpListener,
    cap: usize,
    serve: impl Fn(TcpStream) -> F,
    shed: impl Fn(TcpStream) -> S,
) where
    F: Future<Output = ()> + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let (serving, shedding) = (Arc::new(Semaphore::new(cap)), Arc::new(Semaphore::new(MAX_SHEDDING)));
    let mut spare = SpareDescriptors::default();
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        spare.refill();
        let mut has_released_spare = false;
        let accepted = match listener.accept().await {
            Err(error) if is_out_of_descriptors(&error) && spare.release_one() => {
                has_released_spare = true;
                // The system reports missing descriptors even if no connection waits, so this `accept` must not wait.
                timeout(Duration::ZERO, listener.accept()).await.unwrap_or(Err(io::ErrorKind::WouldBlock.into()))
            }
            accepted => accepted,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                tracing::debug!(kind = ?error.kind(), "can't accept a connection; retrying");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Nagle's algorithm would delay the last piece of each answer until an acknowledgement.
        let _ = socket.set_nodelay(true);
        if let (false, Ok(permit)) = (has_released_spare, Arc::clone(&serving).try_acquire_owned()) {
            let serving = serve(socket);
            tasks.spawn(async move {
                serving.await;
                drop(permit);
            });
        } else if let (false, Ok(permit)) =
            // A reply would hold the last spare descriptor.
            (has_released_spare && spare.is_empty(), Arc::clone(&shedding).try_acquire_owned())
        {
            let refusing = shed(socket);
            tasks.spawn(async move {
                let _ = timeout(SHED_TIMEOUT, refusing).await;
                drop(permit);
            });
        } else {
            reset_on_close(&socket);
        }
    }
}
