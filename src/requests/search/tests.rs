use std::collections::BTreeSet;

use super::{
    testing::{Overlay, ScriptedReply, engine, exit, honest, refusing, result},
    *,
};
use crate::delegated::{Block, HttpOffer, Offer, SearchAnswer, SearchRefusal, SearchRequest};

/// The reply of an exit whose engine demands a CAPTCHA.
fn captcha(_: &SearchRequest) -> ScriptedReply {
    refusing(SearchRefusal::EngineBlocked(Block::Captcha))
}

/// The reply of an exit whose engine sent a malformed answer.
fn malformed(_: &SearchRequest) -> ScriptedReply {
    refusing(SearchRefusal::EngineMalformed)
}

fn broken(_: &SearchRequest) -> ScriptedReply {
    ScriptedReply::Reset
}

/// The reply of [`honest`] with a planted URL in the first result.
fn falsified(request: &SearchRequest) -> ScriptedReply {
    let ScriptedReply::Answer(SearchAnswer::Results { mut results, total, more }) = honest(request) else { panic!() };
    results[0].url = "https://planted.example/".parse().unwrap();
    ScriptedReply::Answer(SearchAnswer::Results { results, total, more })
}

fn query() -> SearchQuery {
    SearchQuery::new("rust ownership")
}

#[tokio::test]
async fn a_search_returns_results_and_the_path() {
    let overlay = Overlay::new(&[honest]);
    let found = overlay.searcher().search(&query()).await.unwrap();
    assert_eq!(found.results[0].title, "About rust ownership");
    assert_eq!((found.total, found.more), (Some(12_345), true));
    assert_eq!(found.route.hops.last().unwrap().relay, exit(0));
    assert_eq!(found.failed_try, None);
}

#[tokio::test]
async fn queries_in_any_script_are_answered_and_invalid_ones_are_not_sent() {
    let overlay = Overlay::new(&[honest]);
    let searcher = overlay.searcher();
    for terms in ["所有権とは何か", "ما هي الملكية", "c++ \"move\" & <b>"] {
        let found = searcher.search(&SearchQuery::new(terms)).await.unwrap();
        assert_eq!(found.results[0].title, format!("About {terms}"));
    }
    let sent = overlay.queried().len();
    for terms in ["", "  ", &"q".repeat(10_000), "a\u{7}b"] {
        let failure = searcher.search(&SearchQuery::new(terms)).await.unwrap_err();
        assert!(matches!(failure, SearchFailure::Query(_)), "{failure}");
    }
    assert_eq!(overlay.queried().len(), sent);
}

#[tokio::test]
async fn each_query_has_a_separate_isolation() {
    let overlay = Overlay::new(&[honest]);
    let searcher = overlay.searcher();
    for _ in 0..3 {
        searcher.search(&query()).await.unwrap();
    }
    let isolations: BTreeSet<_> = overlay.queries.lock().unwrap().iter().map(|(_, isolation)| *isolation).collect();
    assert_eq!(isolations.len(), 3);
}

#[tokio::test]
async fn a_blocked_exit_is_replaced_once_and_then_avoided() {
    let overlay = Overlay::new(&[captcha, honest]);
    let searcher = overlay.searcher();
    let found = searcher.search(&query()).await.unwrap();
    let blocked = FailedTryReason::Refused(SearchRefusal::EngineBlocked(Block::Captcha));
    assert_eq!(found.failed_try, Some(FailedTry { exit: exit(0), reason: blocked }));
    searcher.search(&query()).await.unwrap();
    assert_eq!(overlay.queried(), [exit(0), exit(1), exit(1)]);
    let reports = searcher.exit_statistics(&engine("kiwix"));
    assert!(reports[0].blocked_for.is_some_and(|time| time > Duration::from_secs(590)));
    assert_eq!((reports[0].counts.failed, reports[1].counts.answered), (1, 2));
}

#[tokio::test]
async fn a_query_is_not_sent_if_all_exits_are_blocked() {
    let overlay = Overlay::new(&[captcha, captcha, captcha]);
    let searcher = overlay.searcher();
    assert!(matches!(searcher.search(&query()).await, Err(SearchFailure::Failed(_))));
    assert_eq!(overlay.queried().len(), 2, "one query at each of two exits");
    assert!(matches!(searcher.search(&query()).await, Err(SearchFailure::Failed(_))));
    assert_eq!(searcher.search(&query()).await, Err(QueryError::AllBlocked.into()));
    assert_eq!(overlay.queried().len(), 3);
}

#[tokio::test]
async fn a_failure_of_the_engine_is_not_repeated_at_another_exit() {
    let overlay = Overlay::new(&[malformed, honest]);
    let failure = overlay.searcher().search(&query()).await.unwrap_err();
    assert!(
        matches!(failure, SearchFailure::Failed(FailedTry { reason: FailedTryReason::Refused(_), .. })),
        "{failure}"
    );
    assert_eq!(overlay.queried(), [exit(0)]);
}

#[tokio::test]
async fn an_exit_with_a_truncated_or_malformed_answer_is_replaced() {
    let hostile: [super::testing::ExitScript; 6] = [
        broken,
        |_| ScriptedReply::Bytes(Vec::new()),
        |_| ScriptedReply::Bytes(vec![0xFF; 8192]),
        |_| ScriptedReply::Bytes(vec![0; 8191]),
        |_| ScriptedReply::Bytes(vec![0; 4 << 20]),
        |request| match honest(request) {
            ScriptedReply::Answer(answer) => ScriptedReply::Bytes(answer.encode().unwrap()[..4096].to_vec()),
            _ => panic!(),
        },
    ];
    for script in hostile {
        let overlay = Overlay::new(&[script, honest]);
        let found = overlay.searcher().search(&query()).await.unwrap();
        assert_eq!(found.failed_try, Some(FailedTry { exit: exit(0), reason: FailedTryReason::Broken }));
    }
}

#[tokio::test]
async fn results_are_cleaned_by_the_client() {
    let overlay = Overlay::new(&[|_| {
        let results = vec![
            result("<b>bold</b>\u{202e}", "https://a.example/?utm_source=x&id=1", "a\u{7}\nb"),
            result("script", "javascript:alert(1)", ""),
            result("file", "file:///etc/passwd", ""),
            result("login", "https://user:word@a.example/", ""),
        ];
        ScriptedReply::Answer(SearchAnswer::Results { results, total: None, more: false })
    }]);
    let found = overlay.searcher().search(&query()).await.unwrap();
    let urls: Vec<_> = found.results.iter().map(|result| result.url.as_str()).collect();
    assert_eq!(urls, ["https://a.example/?id=1", "https://a.example/"]);
    assert!(!found.results[0].title.contains('\u{202e}') && !found.results[0].snippet.contains('\u{7}'));
}

#[tokio::test]
async fn a_comparison_shows_an_exit_with_falsified_results() {
    let overlay = Overlay::new(&[honest, falsified, honest, captcha]);
    let searcher = overlay.searcher();
    let comparison = searcher.compare(&query(), 4).await.unwrap();
    let exits: BTreeSet<_> = overlay.queried().into_iter().collect();
    assert_eq!(exits.len(), 4, "each query uses a different exit");
    assert!(!comparison.agrees());
    let planted = comparison.rows.iter().find(|row| row.result.url.host_str() == Some("planted.example")).unwrap();
    assert_eq!(planted.places, [None, Some(1), None, None]);
    assert!(comparison.outcomes[3].outcome.is_err());

    let equal = Overlay::new(&[honest, honest]);
    assert!(equal.searcher().compare(&query(), 2).await.unwrap().agrees());
    let failure = equal.searcher().compare(&query(), 3).await.unwrap_err();
    assert_eq!(failure, SearchFailure::TooFewExits(2));
}

#[tokio::test]
async fn a_comparison_shows_a_changed_snippet() {
    let overlay = Overlay::new(&[honest, |request| {
        let ScriptedReply::Answer(SearchAnswer::Results { mut results, total, more }) = honest(request) else {
            panic!()
        };
        results[1].snippet = "Buy this instead.".to_owned();
        ScriptedReply::Answer(SearchAnswer::Results { results, total, more })
    }]);
    let comparison = overlay.searcher().compare(&query(), 2).await.unwrap();
    assert!(!comparison.agrees() && comparison.rows[0].same_words && !comparison.rows[1].same_words);
}

#[test]
fn the_default_engine_is_first_or_else_the_most_offered_one() {
    let offer =
        |names: &[&str]| Offer { engines: names.iter().map(|name| engine(name)).collect(), requests: HttpOffer::None };
    let offers: Offers = Some(vec![(exit(1), offer(&["a", "b"])), (exit(2), offer(&["b", "c"]))]);
    assert_eq!(engines(&offers, None), [engine("b"), engine("a"), engine("c")]);
    assert_eq!(engines(&offers, Some(&engine("c"))), [engine("c"), engine("b"), engine("a")]);
    assert_eq!(engines(&offers, Some(&engine("x"))).len(), 3);
    assert_eq!(engines(&None, None), []);
}

#[tokio::test]
async fn missing_engines_and_offers_are_reported() {
    let overlay = Overlay::new(&[]);
    assert_eq!(overlay.searcher().search(&query()).await, Err(QueryError::NoEngines.into()));
    let unready = Searcher::new(overlay, Exits::new(watch::channel(None).1, None));
    assert_eq!(unready.search(&query()).await, Err(QueryError::NotReady.into()));
    let other = SearchQuery { engine: Some(engine("other")), ..query() };
    assert_eq!(Overlay::new(&[honest]).searcher().search(&other).await, Err(QueryError::NoSuchEngine.into()));
}
