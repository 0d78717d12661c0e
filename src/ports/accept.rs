//! The accept loop of both ports: one task for each connection, and the places of the port's connections.

use core::future::Future;
use std::io;

use tokio::net::{TcpListener, TcpStream};

use super::places::ConnectionPlaces;
use crate::{
    connector::Connector,
    io::listener::{LocalPort, accept_or_shed},
};

/// Serves `port` on `listener` until the future is dropped, which closes the connections. Runs `serve_one` for at most
/// `cap` connections, and `shed`, which refuses by a reply, for further ones.
pub(super) async fn serve_port<C: Connector, F, S>(
    port: LocalPort,
    listener: TcpListener,
    connector: C,
    cap: usize,
    serve_one: impl Fn(TcpStream, C, ConnectionPlaces) -> F,
    shed: impl Fn(TcpStream) -> S,
) where
    F: Future<Output = io::Result<()>> + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let places = ConnectionPlaces::new(cap);
    let serve_connection = |socket| {
        let serving = serve_one(socket, connector.clone(), places.clone());
        async move {
            if let Err(error) = serving.await {
                tracing::debug!(kind = ?error.kind(), "an application's connection to the {} port failed", port.name());
            }
        }
    };
    accept_or_shed(listener, cap, serve_connection, shed).await;
}
