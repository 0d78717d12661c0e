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
                Service::Http => self.http.serve(stream, owner, admit).await,
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

    use bytes::Bytes;
    use http_body_util::Empty;
    use hyper::{Request, Response, StatusCode};
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
        delegated::{EngineName, SearchAnswer, SearchRefusal, SearchRequest},
        exit::outbound::{
            OutboundClient, TargetPolicies,
            testing::{http_server, outbound_client},
        },
        exit_policy::Policy,
        http_exchange::binary::{read_response, request_head},
        io::{
            stream::Stream,
            testing::{reason_of, stream_pair, target_server},
            tls::Tls,
        },
        wire::EndReason,
    };

    const DEADLINE: Duration = Duration::from_secs(20);

    fn outbound() -> OutboundClient {
        let policy = Policy::parse(["accept *"], true).unwrap();
        let policies = TargetPolicies { resolved: policy.clone(), literal: policy };
        outbound_client(policies, Tls::default(), DEADLINE)
    }

    /// A delegate without engines that offers these requests.
    async fn delegate(policy: HttpPolicy, rates: Rates) -> Arc<Delegate> {
        let senders = Senders { configured: outbound(), public: outbound() };
        let engines = Engines::load::<&str>(&[], senders).await.unwrap();
        let search = ExitSearch::new(engines, SearchCaps::default());
        let http = Http::new(policy, HttpCaps::default());
        Arc::new(Delegate::new(search, http, ExitLimits::new(rates, Instant::now())))
    }

    /// Begins a request. Returns the client's stream.
    fn begin(delegate: &Arc<Delegate>, service: Service, owner: RequestOwner) -> Stream {
        let ((near, far), delegate) = (stream_pair(), Arc::clone(delegate));
        tokio::spawn(async move { delegate.serve(service, owner, far).await });
        near
    }

    /// Sends a whole request over `stream`.
    async fn send(stream: &mut Stream, url: impl core::fmt::Display) {
        let request = Request::get(url.to_string()).body(()).unwrap();
        stream.write_all(&request_head(&request).unwrap()).await.unwrap();
        stream.write_all(&[0, 0]).await.unwrap();
        stream.shutdown().await.unwrap();
    }

    async fn status(stream: &mut Stream) -> StatusCode {
        timeout(DEADLINE, read_response(stream, 64)).await.unwrap().unwrap().0.status()
    }

    #[tokio::test]
    async fn a_displaced_request_is_reset_and_the_other_is_answered() {
        let (connected, mut connections) = tokio::sync::mpsc::unbounded_channel();
        let silent = target_server(move |socket| {
            connected.send(()).unwrap();
            async move {
                core::future::pending::<()>().await;
                drop(socket);
            }
        })
        .await;
        let answering = http_server(|_| async { Response::new(Empty::<Bytes>::new()) }).await;
        let rates = Rates { concurrent: 2, ..Rates::default() };
        let delegate = delegate(HttpPolicy::Open(outbound()), rates).await;
        let mut slow = [1, 2].map(|circuit| begin(&delegate, Service::Http, RequestOwner::of_source(1, circuit)));
        for stream in &mut slow {
            send(stream, format_args!("http://{silent}/")).await;
            timeout(DEADLINE, connections.recv()).await.unwrap().unwrap();
        }
        let mut other = begin(&delegate, Service::Http, RequestOwner::of_source(2, 3));
        send(&mut other, format_args!("http://{answering}/")).await;
        assert_eq!(status(&mut other).await, StatusCode::OK);
        let reset = timeout(DEADLINE, slow[0].read(&mut [0])).await.unwrap().unwrap_err();
        assert_eq!(reason_of(&reset), Some(EndReason::Reset));
    }

    #[tokio::test]
    async fn requests_without_a_head_or_an_offer_leave_all_places_to_others() {
        let (open, none) = (HttpPolicy::Open(outbound()), HttpPolicy::None);
        let answering = http_server(|_| async { Response::new(Empty::<Bytes>::new()) }).await;
        for (policy, expected) in [(open, StatusCode::OK), (none, Refusal::NotOffered.response().status())] {
            let delegate = delegate(policy, Rates::default()).await;
            let of_circuit = |circuit| RequestOwner::of_source(circuit % 20, circuit);
            // Four on each of 64 circuits. Their tasks run before that of a later request.
            let silent: Vec<_> = (0..256).map(|n| begin(&delegate, Service::Http, of_circuit(n % 64))).collect();
            let mut http = begin(&delegate, Service::Http, of_circuit(80));
            send(&mut http, format_args!("http://{answering}/")).await;
            assert_eq!(status(&mut http).await, expected);
            let mut search = begin(&delegate, Service::Search, of_circuit(100));
            let query = SearchRequest::new(EngineName::parse("engine").unwrap(), "terms", 1, None).unwrap();
            search.write_all(&query.encode().unwrap()).await.unwrap();
            search.shutdown().await.unwrap();
            let mut answer = Vec::new();
            timeout(DEADLINE, search.read_to_end(&mut answer)).await.unwrap().unwrap();
            let answer = SearchAnswer::decode(&answer).unwrap();
            assert_eq!(answer, SearchAnswer::Refused(SearchRefusal::UnknownEngine), "admitted");
            drop(silent);
        }
    }
}
