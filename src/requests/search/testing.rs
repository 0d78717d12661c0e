//! A replacement of the overlay for tests, without relays: exits that send scripted answers over real streams.

use core::time::Duration;
use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
};
use url::Url;

use crate::{
    base::RelayId,
    connector::{ConnectError, Connector, Delegated, DelegatedRequest, Hop, Isolation},
    delegated::{EngineName, HttpOffer, Offer, SearchAnswer, SearchRefusal, SearchRequest, SearchResult},
    io::{
        stream::Stream,
        testing::{Direct, stream_pair},
    },
    path::PathError,
    wire::{Host, ResolvedAnswer, Target},
};

use super::{Exits, Searcher};

/// The behaviour of an exit: returns the reply to a query.
pub(crate) type ExitScript = fn(&SearchRequest) -> ScriptedReply;

/// The reply of an exit.
pub(crate) enum ScriptedReply {
    Answer(SearchAnswer),
    /// Bytes in place of an encoded answer.
    Bytes(Vec<u8>),
    /// A reset of the stream, without an answer.
    Reset,
}

/// A connector to scripted exits for searches. Other streams connect directly to loopback.
#[derive(Clone)]
pub(crate) struct Overlay {
    pub(crate) direct: Direct,
    exits: Arc<Vec<ExitScript>>,
    /// The exit and isolation of each query.
    pub(crate) queries: Arc<Mutex<Vec<(RelayId, Isolation)>>>,
}

impl Overlay {
    pub(crate) fn new(exits: &[ExitScript]) -> Self {
        Self { direct: Direct::default(), exits: Arc::new(exits.to_vec()), queries: Arc::default() }
    }

    /// A searcher over these exits, all of which offer the engine `kiwix`.
    pub(crate) fn searcher(&self) -> Searcher<Self> {
        let offer = Offer { engines: vec![engine("kiwix")], requests: HttpOffer::None };
        let offers = (0..self.exits.len()).map(|number| (exit(number), offer.clone())).collect();
        Searcher::new(self.clone(), Exits::new(watch::channel(Some(offers)).1, None))
    }

    /// The exits of all queries, in order.
    pub(crate) fn queried(&self) -> Vec<RelayId> {
        self.queries.lock().unwrap().iter().map(|(exit, _)| *exit).collect()
    }
}

impl Connector for Overlay {
    async fn open(&self, target: Target, isolation: Isolation) -> Result<Stream, ConnectError> {
        self.direct.open(target, isolation).await
    }

    async fn resolve(&self, host: Host, isolation: Isolation) -> Result<Vec<ResolvedAnswer>, ConnectError> {
        self.direct.resolve(host, isolation).await
    }

    async fn delegate(&self, request: DelegatedRequest) -> Result<Delegated, ConnectError> {
        let mut available =
            self.exits.iter().enumerate().filter(|(number, _)| !request.excluded_exits.contains(&exit(*number)));
        let (number, script) = available.next().ok_or(PathError::NotOffered)?;
        self.queries.lock().unwrap().push((exit(number), request.isolation));
        let (near, far) = stream_pair();
        tokio::spawn(answer(far, *script));
        let handshake_time = Duration::from_millis(7);
        let path = [90, 91, number].map(|number| Hop { relay: exit(number), handshake_time }).to_vec();
        Ok(Delegated { stream: near, path, shared_exit: false })
    }
}

async fn answer(mut stream: Stream, script: ExitScript) {
    let mut framed = Vec::new();
    stream.read_to_end(&mut framed).await.unwrap();
    let bytes = match script(&SearchRequest::decode(&framed).unwrap()) {
        ScriptedReply::Answer(answer) => answer.encode().unwrap(),
        ScriptedReply::Bytes(bytes) => bytes,
        ScriptedReply::Reset => return,
    };
    // A client may stop reading early.
    let _ = stream.write_all(&bytes).await;
    let _ = stream.shutdown().await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

pub(crate) fn engine(name: &str) -> EngineName {
    EngineName::parse(name).unwrap()
}

/// The exit with the number `number`.
pub(crate) fn exit(number: usize) -> RelayId {
    RelayId::from_bytes([u8::try_from(number).unwrap(); 32])
}

pub(crate) fn result(title: &str, url: &str, snippet: &str) -> SearchResult {
    SearchResult { title: title.to_owned(), url: Url::parse(url).unwrap(), snippet: snippet.to_owned() }
}

/// The reply of an exit with two results. The title of the first result contains the query.
pub(crate) fn honest(request: &SearchRequest) -> ScriptedReply {
    let url = |number: u16| format!("https://book.example/{}/{number}", request.page());
    let results = vec![
        result(&format!("About {}", request.terms()), &url(1), "The first."),
        result("What is ownership?", &url(2), ""),
    ];
    ScriptedReply::Answer(SearchAnswer::Results { results, total: Some(12_345), more: request.page() < 3 })
}

/// The reply of an exit that refuses the query.
pub(crate) fn refusing(refusal: SearchRefusal) -> ScriptedReply {
    ScriptedReply::Answer(SearchAnswer::Refused(refusal))
}
