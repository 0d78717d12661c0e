//! Delegated requests at an exit: performs searches and HTTP requests of clients, within limits.
//!
//! [`Delegate`] owns the limits and the operator's offer. The exit passes each delegated stream to the delegate, in a
//! separate task. Governed by `proto/09-delegated.md`. Clients are not trusted: the exit performs only requests that
//! the operator offers, and caps sizes, times and rates. It removes the header fields that may identify the client.
//! Requests are never logged.

pub(crate) mod engines;
pub(crate) mod http;
pub(crate) mod limits;
pub(crate) mod search;

use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::delegated::{Offer, Service, limits::RequestOwner};

use self::{http::Http, limits::ExitLimits, search::ExitSearch};

/// The services of an exit.
#[derive(Debug)]
pub(crate) struct Delegate {
    search: ExitSearch,
    http: Http,
    limits: ExitLimits,
}

impl Delegate {
    pub(crate) const fn new(search: ExitSearch, http: Http, limits: ExitLimits) -> Self {
        Self { search, http, limits }
    }

    /// The engines and requests that the exit offers, for the descriptor.
    pub(crate) fn offer(&self) -> Offer {
        Offer { engines: self.search.engines(), requests: self.http.offer() }
    }

    /// Waits until the offer grows. At most one task may wait.
    pub(crate) async fn offer_grown(&self) {
        self.search.engine_added().await;
    }

    /// Performs the request that arrives over `stream`, and writes the answer to the stream. The request counts towards
    /// the limits of `owner`.
    pub(crate) async fn serve<S>(&self, service: Service, owner: RequestOwner, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let admit = || self.limits.admit(Instant::now(), owner);
        let outcome = match service {
            Service::Http => self.http.serve(stream, owner, admit()).await,
            Service::Search => self.search.serve(stream, owner, admit).await,
        };
        if let Err(refusal) = outcome {
            self.limits.count(refusal);
        }
    }

    /// Logs counts of refusals once an hour and refreshes the engines' descriptions. Never ends.
    pub(crate) async fn run(&self) {
        tokio::join!(self.limits.report(), self.search.refresh_engines());
    }
}
