//! Comparisons of the answers of several exits to one query, which reveal an exit that falsifies an engine's answers.
//!
//! Each compared exit sees the query.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::{
    base::RelayId,
    connector::Connector,
    delegated::{SearchResult, exits_offering},
};

use super::{Found, SearchFailure, SearchQuery, Searcher};

/// Maximum exits in a comparison.
pub const MAX_COMPARED: usize = 8;

/// The answers of several exits to one query.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The outcome of each exit, in the order in which the exits were selected.
    pub outcomes: Vec<ExitOutcome>,
    /// All results, each once. The places follow the order of `outcomes`.
    pub rows: Vec<Row>,
}

/// The outcome of the query at one exit.
#[derive(Clone, Debug)]
pub struct ExitOutcome {
    /// The exit.
    pub exit: RelayId,
    /// The results, or the reason of the failure.
    pub outcome: Result<Found, SearchFailure>,
}

/// One result, and its place in the answer of each exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The result, with title and snippet of the first exit that returned it.
    pub result: SearchResult,
    /// The place in the answer of each exit, from 1; `None` for an exit that didn't return the result.
    pub places: Vec<Option<usize>>,
    /// Whether title and snippet are equal at all exits that returned the result.
    pub same_words: bool,
}

impl Comparison {
    fn new(outcomes: Vec<ExitOutcome>) -> Self {
        let lists: Vec<&[SearchResult]> =
            outcomes.iter().map(|exit| exit.outcome.as_ref().map_or(&[][..], |found| &found.results)).collect();
        let longest = lists.iter().map(|list| list.len()).max().unwrap_or(0);
        let mut rows: Vec<Row> = Vec::new();
        // The lists are interleaved by place, so that no exit has precedence.
        for result in (0..longest).flat_map(|index| lists.iter().filter_map(move |list| list.get(index))) {
            if rows.iter().all(|row| row.result.url != result.url) {
                rows.push(row(result, &lists));
            }
        }
        Self { outcomes, rows }
    }

    /// Whether all successful exits returned the same results in the same order.
    #[must_use]
    pub fn agrees(&self) -> bool {
        let has_answered: Vec<bool> = self.outcomes.iter().map(|exit| exit.outcome.is_ok()).collect();
        self.rows.iter().all(|row| {
            let mut places =
                row.places.iter().zip(&has_answered).filter(|(_, answered)| **answered).map(|(place, _)| place);
            let first = places.next();
            row.same_words && places.all(|place| Some(place) == first)
        })
    }
}

fn row(result: &SearchResult, lists: &[&[SearchResult]]) -> Row {
    let place = |list: &&[SearchResult]| list.iter().position(|other| other.url == result.url);
    let same_words =
        lists.iter().flat_map(|list| list.iter()).filter(|other| other.url == result.url).all(|other| other == result);
    let places = lists.iter().map(|list| place(list).map(|place| place.saturating_add(1))).collect();
    Row { result: result.clone(), places, same_words }
}

impl<C: Connector> Searcher<C> {
    /// Sends the query to `exits` different exits concurrently, at most [`MAX_COMPARED`], each over a separate
    /// circuit.
    ///
    /// # Errors
    /// When fewer exits are available, the query is invalid, or a circuit is missing. The failure of an exit is no error
    /// of the call; it is the outcome of the exit.
    pub async fn compare(&self, query: &SearchQuery, exits: usize) -> Result<Comparison, SearchFailure> {
        let mut query = self.begin(query)?;
        let is_available = |exit: &RelayId| !query.excluded_exits().contains(exit);
        let available = exits_offering(&self.state().offers.borrow(), query.engine()).filter(is_available).count();
        if available < exits.min(MAX_COMPARED) {
            return Err(SearchFailure::TooFewExits(available));
        }
        // The streams are opened in sequence, so that all exits differ. The queries then run concurrently.
        let mut opened = Vec::new();
        for _ in 0..exits.min(MAX_COMPARED) {
            let delegated = self.open(&query).await?;
            let Some(exit) = delegated.path.last().map(|hop| hop.relay) else { continue };
            query.exclude(exit);
            opened.push((exit, delegated));
        }
        let query = Arc::new(query);
        let mut queries = JoinSet::new();
        for (index, (exit, delegated)) in opened.into_iter().enumerate() {
            let (searcher, query) = (self.clone(), Arc::clone(&query));
            queries.spawn(async move {
                let outcome = searcher.send(&query, delegated).await.map_err(SearchFailure::from);
                (index, ExitOutcome { exit, outcome })
            });
        }
        let mut outcomes = queries.join_all().await;
        outcomes.sort_by_key(|(index, _)| *index);
        Ok(Comparison::new(outcomes.into_iter().map(|(_, outcome)| outcome).collect()))
    }
}
