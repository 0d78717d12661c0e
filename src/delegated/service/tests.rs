#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::delegated::{EngineName, SearchResult};

const NOW: Instant = Instant::START;

fn service() -> SearchService<u64> {
    SearchService::new(ServiceParameters::default())
}

fn query() -> SearchRequest {
    SearchRequest::new(EngineName::parse("engine").unwrap(), "ownership", 1, None).unwrap()
}

fn events(service: &mut SearchService<u64>) -> Vec<ServiceEvent<u64>> {
    core::iter::from_fn(|| service.poll_event()).collect()
}

/// Sends a query over `stream`.
fn ask(service: &mut SearchService<u64>, stream: u64, circuit: u64) {
    service.handle_request(NOW, stream, circuit);
    service.handle_data(NOW, stream, &query().encode().unwrap());
    service.handle_finished(NOW, stream);
}

/// Takes all unsent bytes of `stream`.
fn told(service: &mut SearchService<u64>, stream: u64) -> SearchAnswer {
    let answer = SearchAnswer::decode(service.unwritten(stream)).unwrap();
    let all = service.unwritten(stream).len();
    assert!(!service.handle_written(stream, all - 1));
    assert!(service.handle_written(stream, 1));
    answer
}

fn refused(service: &mut SearchService<u64>, stream: u64) -> SearchRefusal {
    match told(service, stream) {
        SearchAnswer::Refused(refusal) => refusal,
        SearchAnswer::Results { .. } => panic!("answered"),
    }
}

#[test]
fn a_query_in_pieces_is_performed_once_and_its_answer_written() {
    let mut service = service();
    service.handle_request(NOW, 7, 1);
    for piece in query().encode().unwrap().chunks(100) {
        service.handle_data(NOW, 7, piece);
        assert_eq!(events(&mut service), []);
    }
    service.handle_finished(NOW, 7);
    assert_eq!(events(&mut service), [ServiceEvent::Query { stream: 7, request: query() }]);
    let result = SearchResult::new("Ownership", "https://book.example/", None, "").unwrap();
    let answer = SearchAnswer::Results { results: vec![result], total: Some(1), more: false };
    service.handle_answer(NOW, 7, &answer);
    assert_eq!(events(&mut service), [ServiceEvent::Write { stream: 7 }]);
    assert_eq!(told(&mut service, 7), answer);
    // A second answer is ignored.
    service.handle_answer(NOW, 7, &answer);
    assert_eq!(events(&mut service), []);
    assert_eq!(service.unwritten(7), b"");
    assert_eq!(service.poll_timeout(), None);
}

#[test]
fn an_invalid_query_is_refused_and_not_performed() {
    let mut service = service();
    let mut wrong = query().encode().unwrap();
    *wrong.last_mut().unwrap() = 1;
    let endless = vec![0; longest(REQUEST_BUCKETS) + 1];
    for (stream, bytes) in [(1, wrong), (2, endless), (3, b"GET /".to_vec())] {
        service.handle_request(NOW, stream, stream);
        service.handle_data(NOW, stream, &bytes);
        service.handle_finished(NOW, stream);
        assert_eq!(events(&mut service), [ServiceEvent::Write { stream }]);
        assert_eq!(refused(&mut service, stream), SearchRefusal::BadRequest);
    }
    service.handle_request(NOW, 4, 4);
    service.handle_finished(NOW, 4);
    assert_eq!(events(&mut service), [ServiceEvent::Reset { stream: 4, reason: EndReason::Failed }]);
}

#[test]
fn queries_beyond_the_limit_of_a_circuit_are_refused_and_others_are_served() {
    let mut service = service();
    // Four concurrent queries.
    (0..5).for_each(|stream| ask(&mut service, stream, 1));
    let asked = events(&mut service);
    assert_eq!(asked.iter().filter(|event| matches!(event, ServiceEvent::Query { .. })).count(), 4);
    assert_eq!(asked.last(), Some(&ServiceEvent::Write { stream: 4 }));
    assert_eq!(refused(&mut service, 4), SearchRefusal::RateLimited);
    ask(&mut service, 5, 2);
    assert_eq!(events(&mut service), [ServiceEvent::Query { stream: 5, request: query() }]);
}

#[test]
fn streams_are_capped_in_total_and_an_ended_one_makes_room() {
    let mut service = service();
    (0..64).for_each(|stream| service.handle_request(NOW, stream, stream));
    assert_eq!(events(&mut service), []);
    service.handle_request(NOW, 64, 64);
    assert_eq!(events(&mut service), [ServiceEvent::Reset { stream: 64, reason: EndReason::ResourceLimit }]);
    service.handle_closed(0);
    service.handle_request(NOW, 65, 65);
    assert_eq!(events(&mut service), []);
}

#[test]
fn streams_without_a_query_block_no_query_of_others() {
    let mut service = service();
    // One circuit gets no more than its share of the streams, and its open streams don't block other circuits'
    // queries.
    (0..9).for_each(|stream| service.handle_request(NOW, stream, 1));
    assert_eq!(events(&mut service), [ServiceEvent::Reset { stream: 8, reason: EndReason::ResourceLimit }]);
    (0..8).for_each(|stream| service.handle_request(NOW, 10 + stream, 2));
    let rates = Rates { at_once: 1, ..Rates::default() };
    let mut narrow = SearchService::new(ServiceParameters { rates, ..ServiceParameters::default() });
    (0..8).for_each(|stream| narrow.handle_request(NOW, stream, 1));
    ask(&mut narrow, 10, 2);
    assert_eq!(events(&mut narrow), [ServiceEvent::Query { stream: 10, request: query() }]);
    // Nor does a client that doesn't read the answer.
    ask(&mut narrow, 11, 3);
    assert_eq!(refused(&mut narrow, 11), SearchRefusal::RateLimited);
    narrow.handle_answer(NOW, 10, &SearchAnswer::Refused(SearchRefusal::EngineFailed));
    ask(&mut narrow, 12, 3);
    events(&mut narrow).iter().find(|event| matches!(event, ServiceEvent::Query { stream: 12, .. })).unwrap();
}

#[test]
fn a_closed_stream_cancels_its_query_and_frees_its_place() {
    let mut service = service();
    (0..4).for_each(|stream| ask(&mut service, stream, 1));
    events(&mut service);
    service.handle_closed(2);
    assert_eq!(events(&mut service), [ServiceEvent::Cancel { stream: 2 }]);
    ask(&mut service, 4, 1);
    assert_eq!(events(&mut service), [ServiceEvent::Query { stream: 4, request: query() }]);
}

#[test]
fn slow_clients_and_slow_engines_time_out() {
    let mut service = service();
    let limits = ServiceParameters::default();
    service.handle_request(NOW, 1, 1);
    service.handle_data(NOW, 1, b"x");
    ask(&mut service, 2, 2);
    events(&mut service);
    assert_eq!(service.poll_timeout(), Some(NOW.after(limits.query)));
    service.handle_timeout(NOW.after(limits.query));
    assert_eq!(events(&mut service), [ServiceEvent::Reset { stream: 1, reason: EndReason::TimedOut }]);
    let late = NOW.after(limits.engine);
    service.handle_timeout(late);
    assert_eq!(events(&mut service), [ServiceEvent::Cancel { stream: 2 }, ServiceEvent::Write { stream: 2 }]);
    // Likewise a client that doesn't read the answer.
    service.handle_timeout(late.after(limits.stall));
    assert_eq!(events(&mut service), [ServiceEvent::Reset { stream: 2, reason: EndReason::TimedOut }]);
    assert_eq!(service.poll_timeout(), None);
}
