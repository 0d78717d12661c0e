#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::delegated::{Block, HttpOffer, Offer, SearchRefusal};

const NOW: Instant = Instant::START;
const CAPTCHA: FailedTryReason = FailedTryReason::Refused(SearchRefusal::EngineBlocked(Block::Captcha));

type Outcome = Result<&'static str, TryError<()>>;

fn engine(name: &str) -> EngineName {
    EngineName::parse(name).unwrap()
}

fn exit(number: u8) -> RelayId {
    RelayId::from_bytes([number; 32])
}

fn failed_try(number: u8, reason: FailedTryReason) -> Outcome {
    Err(TryError::Failed(FailedTry { exit: exit(number), reason }))
}

fn offers(exits: &[(u8, &[&str])]) -> Offers {
    let offer =
        |names: &[&str]| Offer { engines: names.iter().map(|name| engine(name)).collect(), requests: HttpOffer::None };
    Some(exits.iter().map(|(number, names)| (exit(*number), offer(names))).collect())
}

fn begin(query: &SearchQuery, offers: &Offers, default: Option<&str>) -> Result<Query, QueryError> {
    Query::new(NOW, query, offers, default.map(engine).as_ref(), &ExitStatistics::default())
}

#[test]
fn the_engine_is_the_requested_one_the_default_or_the_one_of_most_exits() {
    let offers = offers(&[(1, &["a", "b"]), (2, &["b"])]);
    let any = SearchQuery::new("x");
    let named = |name: &str| SearchQuery { engine: Some(engine(name)), ..SearchQuery::new("x") };
    assert_eq!(begin(&any, &offers, None).unwrap().engine(), &engine("b"));
    assert_eq!(begin(&any, &offers, Some("a")).unwrap().engine(), &engine("a"));
    assert_eq!(begin(&named("b"), &offers, Some("a")).unwrap().engine(), &engine("b"));
    for (query, default) in [(named("c"), None), (named("c"), Some("a")), (any.clone(), Some("c"))] {
        assert_eq!(begin(&query, &offers, default).err(), Some(QueryError::NoSuchEngine));
    }
    assert_eq!(begin(&named("c"), &Some(Vec::new()), None).err(), Some(QueryError::NoEngines));
    assert_eq!(begin(&any, &None, None).err(), Some(QueryError::NotReady));
    let invalid = begin(&SearchQuery::new(" "), &offers, None).err();
    assert_eq!(invalid, Some(QueryError::Invalid(SearchError::NoTerms)));
}

#[test]
fn blocked_exits_are_avoided_and_a_query_fails_if_all_exits_are_blocked() {
    let offers = offers(&[(1, &["a"]), (2, &["a"]), (3, &["b"])]);
    let mut statistics = ExitStatistics::default();
    statistics.handle_outcome(NOW, &engine("a"), exit(1), Err(CAPTCHA));
    let query = SearchQuery { engine: Some(engine("a")), ..SearchQuery::new("x") };
    let begun = Query::new(NOW, &query, &offers, None, &statistics).unwrap();
    assert_eq!(begun.excluded_exits(), [exit(1)]);
    statistics.handle_outcome(NOW, &engine("a"), exit(2), Err(CAPTCHA));
    assert_eq!(Query::new(NOW, &query, &offers, None, &statistics).err(), Some(QueryError::AllBlocked));
}

#[test]
fn a_failed_try_is_repeated_once_at_another_exit() {
    let offers = offers(&[(1, &["a"]), (2, &["a"]), (3, &["a"])]);
    let begin = || begin(&SearchQuery::new("x"), &offers, None).unwrap();
    let (mut query, found): (_, Outcome) = (begin(), Ok("found"));
    assert_eq!(query.handle_outcome(failed_try(1, CAPTCHA)), None);
    assert_eq!(query.excluded_exits(), [exit(1)]);
    assert_eq!(query.handle_outcome(found), Some(found));
    assert_eq!(query.failed_try(), Some(FailedTry { exit: exit(1), reason: CAPTCHA }));

    let mut query = begin();
    assert_eq!(query.handle_outcome(failed_try(1, CAPTCHA)), None);
    assert_eq!(
        query.handle_outcome(failed_try(2, FailedTryReason::Broken)),
        Some(failed_try(2, FailedTryReason::Broken))
    );

    let mut query = begin();
    assert_eq!(query.handle_outcome(failed_try(1, CAPTCHA)), None);
    let other: Outcome = Err(TryError::NoCircuit(()));
    assert_eq!(query.handle_outcome(other), Some(failed_try(1, CAPTCHA)), "there is no other exit");
}

#[test]
fn a_failure_that_allows_no_second_try_ends_the_search() {
    let offers = offers(&[(1, &["a"]), (2, &["a"])]);
    for outcome in [
        failed_try(1, FailedTryReason::TimedOut),
        failed_try(1, FailedTryReason::Refused(SearchRefusal::EngineMalformed)),
        Err(TryError::NoCircuit(())),
    ] {
        let mut query = begin(&SearchQuery::new("x"), &offers, None).unwrap();
        assert_eq!(query.handle_outcome(outcome), Some(outcome));
        assert_eq!(query.failed_try(), None);
    }
}
