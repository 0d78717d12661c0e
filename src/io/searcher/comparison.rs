//! One query asked of several exits, and where they differ: so that an exit that lies about the engine shows.
//!
//! That many exits then see the query.

use tokio::task::JoinSet;

use crate::{base::RelayId, delegated::SearchResult, io::connector::Connector};

use super::{Found, SearchFailure, SearchQuery, Searcher};

/// Exits that can be compared at a time.
pub const MAX_COMPARED: usize = 8;

/// One query at several exits.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What each exit answered, in the order they were chosen.
    pub asked: Vec<Asked>,
    /// Everything that any of them found.
    pub rows: Vec<Row>,
}

/// One exit's answer.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The exit.
    pub exit: RelayId,
    /// What it answered.
    pub outcome: Result<Found, SearchFailure>,
}

/// One result, and where each exit has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The result, as the first exit that has it words it.
    pub result: SearchResult,
    /// Its place at each exit, from 1; at those that did not answer, none.
    pub places: Vec<Option<usize>>,
    /// All that have it word it the same.
    pub same_words: bool,
}

impl Comparison {
    fn new(asked: Vec<Asked>) -> Self {
        let lists: Vec<&[SearchResult]> =
            asked.iter().map(|asked| asked.outcome.as_ref().map_or(&[][..], |found| &found.results)).collect();
        let longest = lists.iter().map(|list| list.len()).max().unwrap_or(0);
        let mut rows: Vec<Row> = Vec::new();
        // Place by place, so that no exit's list comes before the others'.
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
    /// Asks `exits` different exits at once, each over a circuit of its own.
    ///
    /// # Errors
    /// When there are not as many that can be asked, or the query is none. An exit that fails is one of the answers.
    pub async fn compare(&self, query: &SearchQuery, exits: usize) -> Result<Comparison, SearchFailure> {
        let request = self.request(query)?;
        let mut not_by = self.blocked(request.engine())?;
        let able = self.exits_with(request.engine()).iter().filter(|exit| !not_by.contains(exit)).count();
        if able < exits.min(MAX_COMPARED) {
            return Err(SearchFailure::TooFewExits(able));
        }
        // One after the other, so that each is another exit; then all at once.
        let mut opened = Vec::new();
        for _ in 0..exits.min(MAX_COMPARED) {
            let delegated = self.open(request.engine(), not_by.clone()).await?;
            let Some(hop) = delegated.path.last() else { continue };
            not_by.push(hop.relay);
            opened.push((hop.relay, delegated));
        }
        let mut asking = JoinSet::new();
        for (place, (exit, delegated)) in opened.into_iter().enumerate() {
            let (searcher, request) = (self.clone(), request.clone());
            asking.spawn(async move {
                let outcome = searcher.converse(&request, delegated).await;
                (place, Asked { exit, outcome })
            });
        }
        let mut asked = asking.join_all().await;
        asked.sort_by_key(|(place, _)| *place);
        Ok(Comparison::new(asked.into_iter().map(|(_, asked)| asked).collect()))
    }
}
