//! Comparison of the answers of several exits to one query, which reveals an exit that falsifies an engine's answers.
//!
//! Each of these exits sees the query.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::{
    base::RelayId,
    connector::Connector,
    delegated::{SearchResult, exits_with},
};

use super::{Found, SearchFailure, SearchQuery, Searcher};

/// Maximum exits in a comparison.
pub const MAX_COMPARED: usize = 8;

/// One query's answers from several exits.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Each exit's answer, in the order in which the exits were chosen.
    pub asked: Vec<ExitOutcome>,
    /// All results, each once.
    pub rows: Vec<Row>,
}

/// One exit's answer.
#[derive(Clone, Debug)]
pub struct ExitOutcome {
    /// The exit.
    pub exit: RelayId,
    /// The outcome of the query there.
    pub outcome: Result<Found, SearchFailure>,
}

/// One result, and its rank at each exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The result, with title and snippet of the first exit that gave it.
    pub result: SearchResult,
    /// The rank at each exit, from 1; `None` where the exit didn't give it.
    pub places: Vec<Option<usize>>,
    /// Whether title and snippet are the same at all exits that gave it.
    pub same_words: bool,
}

impl Comparison {
    fn new(asked: Vec<ExitOutcome>) -> Self {
        let lists: Vec<&[SearchResult]> =
            asked.iter().map(|asked| asked.outcome.as_ref().map_or(&[][..], |found| &found.results)).collect();
        let longest = lists.iter().map(|list| list.len()).max().unwrap_or(0);
        let mut rows: Vec<Row> = Vec::new();
        // Interleaved by rank, so that no exit's list precedes the others'.
        for result in (0..longest).flat_map(|place| lists.iter().filter_map(move |list| list.get(place))) {
            if rows.iter().all(|row| row.result.link != result.link) {
                rows.push(row(result, &lists));
            }
        }
        Self { asked, rows }
    }

    /// Whether all exits that answered gave the same results in the same order.
    #[must_use]
    pub fn agrees(&self) -> bool {
        let answered: Vec<bool> = self.asked.iter().map(|asked| asked.outcome.is_ok()).collect();
        self.rows.iter().all(|row| {
            let mut places =
                row.places.iter().zip(&answered).filter(|(_, answered)| **answered).map(|(place, _)| place);
            let first = places.next();
            row.same_words && places.all(|place| Some(place) == first)
        })
    }
}

fn row(result: &SearchResult, lists: &[&[SearchResult]]) -> Row {
    let place = |list: &&[SearchResult]| list.iter().position(|other| other.link == result.link);
    let same_words = lists
        .iter()
        .flat_map(|list| list.iter())
        .filter(|other| other.link == result.link)
        .all(|other| other == result);
    let places = lists.iter().map(|list| place(list).map(|place| place.saturating_add(1))).collect();
    Row { result: result.clone(), places, same_words }
}

impl<C: Connector> Searcher<C> {
    /// Sends the query to `exits` different exits concurrently, at most [`MAX_COMPARED`], each over a separate
    /// circuit.
    ///
    /// # Errors
    /// When fewer exits are available, or the query is invalid. An exit's failure is one of the answers.
    pub async fn compare(&self, query: &SearchQuery, exits: usize) -> Result<Comparison, SearchFailure> {
        let mut query = self.begin(query)?;
        let is_able = |exit: &RelayId| !query.not_by().contains(exit);
        let able = exits_with(&self.known().offers.borrow(), query.engine()).filter(is_able).count();
        if able < exits.min(MAX_COMPARED) {
            return Err(SearchFailure::TooFewExits(able));
        }
        // Opened in sequence, so that each exit is a different one. The queries then run concurrently.
        let mut opened = Vec::new();
        for _ in 0..exits.min(MAX_COMPARED) {
            let delegated = self.open(&query).await?;
            let Some(exit) = delegated.path.last().map(|hop| hop.relay) else { continue };
            query.avoid(exit);
            opened.push((exit, delegated));
        }
        let query = Arc::new(query);
        let mut asking = JoinSet::new();
        for (place, (exit, delegated)) in opened.into_iter().enumerate() {
            let (searcher, query) = (self.clone(), Arc::clone(&query));
            asking.spawn(async move {
                let outcome = searcher.converse(&query, delegated).await.map_err(SearchFailure::from);
                (place, ExitOutcome { exit, outcome })
            });
        }
        let mut asked = asking.join_all().await;
        asked.sort_by_key(|(place, _)| *place);
        Ok(Comparison::new(asked.into_iter().map(|(_, asked)| asked).collect()))
    }
}
