//! What an exit does on clients' behalf: it performs their requests, within limits, and tells what it offers.
//!
//! [`Delegate`] owns the limits and what the operator offers; the exit hands it each delegated stream, and the task that
//! does so is all that a request has. Governed by `proto/09-delegated.md`. Clients are not trusted: what they may ask for is
//! what the operator offers, sizes, times and rates are capped, and a request that leaves carries nothing about who sent it.
//! Nothing of a request is ever logged.

pub(crate) mod engines;
pub(crate) mod fields;
pub(crate) mod http;
pub(crate) mod limits;
pub(crate) mod refusal;
pub(crate) mod search;

use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::delegated::{Offer, Service};

use self::{http::Http, limits::Limits, search::Search};

/// An exit's services.
#[derive(Debug)]
pub(crate) struct Delegate {
    search: Search,
    http: Http,
    limits: Limits,
}

impl Delegate {
    pub(crate) const fn new(search: Search, http: Http, limits: Limits) -> Self {
        Self { search, http, limits }
    }

    /// What it offers, for the descriptor.
    pub(crate) fn offer(&self) -> Offer {
        Offer { engines: self.search.engines(), requests: self.http.offer() }
    }

    /// Waits until it offers more than before. For one that waits.
    pub(crate) async fn offer_grown(&self) {
        self.search.grown().await;
    }

    /// Does what comes over `stream`, one of those of the circuit numbered `circuit`, and answers there.
    pub(crate) async fn serve<S>(&self, service: Service, circuit: u64, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let admit = || self.limits.admit(Instant::now(), circuit);
        let done = match service {
            Service::Http => self.http.serve(stream, admit()).await,
            Service::Search => self.search.serve(stream, admit).await,
        };
        if let Err(refusal) = done {
            self.limits.count(refusal);
        }
    }

    /// Says in the log once an hour what was refused and how often, and keeps the engines' descriptions fresh, for ever.
    pub(crate) async fn keep(&self) {
        tokio::join!(self.limits.report(), self.search.keep_fresh());
    }
}
