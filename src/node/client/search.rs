//! Searching with the crate.

use crate::io::searcher::{Comparison, Found, SearchFailure, SearchQuery, Searcher};

use super::Client;

impl Client {
    /// Searches: an exit asks the engine, which learns nothing of who asks; the exit learns the query and no more. Each
    /// query goes over a circuit of its own, whatever handle it comes through.
    ///
    /// The results are the exit's word: their links are cleaned, but may have been planted for this query alone. Follow
    /// them through the overlay ([`Client::connect`]).
    ///
    /// # Errors
    /// See [`SearchFailure`].
    ///
    /// ```no_run
    /// # async fn example(client: umbel::Client) -> Result<(), umbel::SearchFailure> {
    /// let found = client.search(&umbel::SearchQuery::new("rust ownership")).await?;
    /// for result in &found.results {
    ///     println!("{} {}", result.title, result.link);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn search(&self, query: &SearchQuery) -> Result<Found, SearchFailure> {
        self.searcher().search(query).await
    }

    /// Asks `exits` exits the same, at most eight, each over a circuit of its own. All of them then see the query.
    ///
    /// # Errors
    /// When there are not as many, or the query is none.
    pub async fn compare(&self, query: &SearchQuery, exits: usize) -> Result<Comparison, SearchFailure> {
        self.searcher().compare(query, exits).await
    }

    pub(super) fn searcher(&self) -> Searcher<Self> {
        Searcher::new(self.clone(), self.shared.exits.clone())
    }
}
