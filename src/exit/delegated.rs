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

use std::{sync::Arc, time::Instant};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
};

use crate::{
    delegated::{Offer, Service, limits::RequestOwner},
    http_exchange::refusal::Refusal,
};

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
    /// the limits of `owner`. Resets the stream if another request displaces this one.
    pub(crate) async fn serve<S>(&self, service: Service, owner: RequestOwner, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let displaced = Arc::new(Notify::new());
        let admit = || self.limits.admit(Instant::now(), owner, Arc::clone(&displaced));
        let serving = async {
            match service {
                Service::Http => self.http.serve(stream, owner, admit()).await,
                Service::Search => self.search.serve(stream, owner, admit).await,
            }
        };
        let outcome = tokio::select! {
            outcome = serving => outcome,
            () = displaced.notified() => Err(Refusal::Busy),
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

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use hyper::Request;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::timeout,
    };

    use super::{
        engines::{Engines, Senders},
        http::{HttpCaps, HttpPolicy},
        limits::Rates,
        search::SearchCaps,
        *,
    };
    use crate::{
        exit::outbound::{OutboundClient, OutboundLimits, TargetPolicies},
        exit_policy::Policy,
        http_exchange::binary::{read_response, request_head},
        io::{
            resolver::{Resolver, ResolverOptions},
            testing::{reason_of, stream_pair},
            tls::Tls,
        },
        wire::EndReason,
    };

    const DEADLINE: Duration = Duration::from_secs(20);

    /// A delegate that offers nothing, so that it refuses each request after its head.
    async fn delegate(rates: Rates) -> Delegate {
        let outbound = || {
            let policy = Policy::parse(["accept *"], false).unwrap();
            let policies = TargetPolicies { resolved: policy.clone(), literal: policy };
            let options =
                ResolverOptions { servers: vec!["127.0.0.1:9".parse().unwrap()], ..ResolverOptions::default() };
            OutboundClient::new(policies, Arc::new(Resolver::new(&options)), Tls::default(), OutboundLimits::default())
        };
        let senders = Senders { configured: outbound(), public: outbound() };
        let engines = Engines::load::<&str>(&[], senders).await.unwrap();
        let (search, http) =
            (ExitSearch::new(engines, SearchCaps::default()), Http::new(HttpPolicy::None, HttpCaps::default()));
        Delegate::new(search, http, ExitLimits::new(rates, Instant::now()))
    }

    #[tokio::test]
    async fn a_displaced_request_is_reset_and_the_other_is_answered() {
        let delegate = Arc::new(delegate(Rates { concurrent: 2, ..Rates::default() }).await);
        let begin = |owner| {
            let ((near, far), delegate) = (stream_pair(), Arc::clone(&delegate));
            tokio::spawn(async move { delegate.serve(Service::Http, owner, far).await });
            near
        };
        let mut slow = [1, 2].map(|circuit| begin(RequestOwner::of_source(1, circuit)));
        let mut other = begin(RequestOwner::of_source(2, 3));
        let request = Request::get("http://example.org/").body(()).unwrap();
        other.write_all(&request_head(&request).unwrap()).await.unwrap();
        other.write_all(&[0, 0]).await.unwrap();
        other.shutdown().await.unwrap();
        let (response, _) = timeout(DEADLINE, read_response(&mut other, 0)).await.unwrap().unwrap();
        assert_eq!(response.status(), Refusal::NotOffered.response().status());
        let reset = timeout(DEADLINE, slow[0].read(&mut [0])).await.unwrap().unwrap_err();
        assert_eq!(reason_of(&reset), Some(EndReason::Reset));
    }
}
