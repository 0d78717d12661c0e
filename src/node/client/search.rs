//! Searches of the crate's API.

use crate::requests::search::{Comparison, Found, SearchFailure, SearchQuery, Searcher};

use super::Client;

impl Client {
    /// Sends a query to an exit, which queries the engine. The engine doesn't see the client's address; the exit
    /// sees only the query. Each query uses a separate circuit, independent of the handle.
    ///
    /// The results are not authenticated. Their URLs are cleaned, but the exit may have inserted URLs unique to this
    /// query. Fetch the URLs through the overlay ([`Client::open`]).
    ///
    /// # Errors
    /// See [`SearchFailure`].
    ///
    /// ```no_run
    /// # async fn example(client: umbel::Client) -> Result<(), umbel::SearchFailure> {
    /// let found = client.search(&umbel::SearchQuery::new("rust ownership")).await?;
    /// for result in &found.results {
    ///     println!("{} {}", result.title, result.url);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn search(&self, query: &SearchQuery) -> Result<Found, SearchFailure> {
        self.searcher().search(query).await
    }

    /// Sends the same query to `exits` exits, at most eight, each over a separate circuit. All these exits see the
    /// query.
    ///
    /// # Errors
    /// When fewer than `exits` exits offer the engine, or the query is invalid.
    pub async fn compare(&self, query: &SearchQuery, exits: usize) -> Result<Comparison, SearchFailure> {
        self.searcher().compare(query, exits).await
    }

    pub(super) fn searcher(&self) -> Searcher<Self> {
        Searcher::new(self.clone(), self.shared.exits.clone())
    }
}
