#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::delegated::{EngineName, SearchResult, limits::RequestOwner};

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
fn send_query(service: &mut SearchService<u64>, stream: u64, circuit: u64) {
    service.handle_request(NOW, stream, RequestOwner::alone(circuit));
    service.handle_data(NOW, stream, &query().encode().unwrap());
    service.handle_finished(NOW, stream);
}

/// Takes all unwritten bytes of `stream`, and decodes the answer.
fn take_answer(service: &mut SearchService<u64>, stream: u64) -> SearchAnswer {
    let answer = SearchAnswer::decode(service.unwritten(stream)).unwrap();
    let all = service.unwritten(stream).len();
    assert!(!service.handle_written(stream, all - 1));
    assert!(service.handle_written(stream, 1));
    answer
}

fn refused(service: &mut SearchService<u64>, stream: u64) -> SearchRefusal {
    match take_answer(service, stream) {
        SearchAnswer::Refused(refusal) => refusal,
        SearchAnswer::Results { .. } => panic!("answered"),
    }
}

#[test]
fn a_query_in_pieces_is_emitted_once_and_its_answer_is_sent() {
    let mut service = service();
    service.handle_request(NOW, 7, RequestOwner::alone(1));
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
    assert_eq!(take_answer(&mut service, 7), answer);
    // A second answer is ignored.
    service.handle_answer(NOW, 7, &answer);
    assert_eq!(events(&mut service), []);
    assert_eq!(service.unwritten(7), b"");
    assert_eq!(service.poll_timeout(), None);
}

#[test]
fn a_query_that_is_too_long_counts_towards_the_rate_limit() {
    let mut service = service();
    let too_long = vec![0; max_frame_len(REQUEST_BUCKETS) + 1];
    // The burst of one circuit is eight queries.
    for stream in 0..9 {
        service.handle_request(NOW, stream, RequestOwner::alone(1));
        service.handle_data(NOW, stream, &too_long);
        let expected = if stream < 8 { SearchRefusal::BadRequest } else { SearchRefusal::RateLimited };
        assert_eq!(refused(&mut service, stream), expected, "query {stream}");
    }
    events(&mut service);
    send_query(&mut service, 9, 2);
    assert_eq!(events(&mut service), [ServiceEvent::Query { stream: 9, request: query() }]);
}

#[test]
fn a_malformed_query_is_refused_and_not_emitted() {
    let mut service = service();
    let mut wrong = query().encode().unwrap();
    *wrong.last_mut().unwrap() = 1;
    let too_long = vec![0; max_frame_len(REQUEST_BUCKETS) + 1];
    for (stream, bytes) in [(1, wrong), (2, too_long), (3, b"GET /".to_vec())] {
        service.handle_request(NOW, stream, RequestOwner::alone(stream));
        service.handle_data(NOW, stream, &bytes);
        service.handle_finished(NOW, stream);
        assert_eq!(events(&mut service), [ServiceEvent::Write { stream }]);
        assert_eq!(refused(&mut service, stream), SearchRefusal::BadRequest);
    }
    service.handle_request(NOW, 4, RequestOwner::alone(4));
    service.handle_finished(NOW, 4);
    assert_eq!(events(&mut service), [ServiceEvent::Reset { stream: 4, reason: EndReason::Failed }]);
}

#[test]
fn queries_above_the_limit_of_a_circuit_are_refused_and_those_of_others_are_not() {
    let mut service = service();
    // Four concurrent queries.
    (0..5).for_each(|stream| send_query(&mut service, stream, 1));
    let emitted = events(&mut service);
    assert_eq!(emitted.iter().filter(|event| matches!(event, ServiceEvent::Query { .. })).count(), 4);
    assert_eq!(emitted.last(), Some(&ServiceEvent::Write { stream: 4 }));
    assert_eq!(refused(&mut service, 4), SearchRefusal::RateLimited);
    send_query(&mut service, 5, 2);
    assert_eq!(events(&mut service), [ServiceEvent::Query { stream: 5, request: query() }]);
}

#[test]
fn the_number_of_streams_is_bounded_and_a_closed_stream_frees_its_place() {
    let mut service = service();
    (0..64).for_each(|stream| service.handle_request(NOW, stream, RequestOwner::alone(stream)));
    assert_eq!(events(&mut service), []);
    service.handle_request(NOW, 64, RequestOwner::alone(64));
    assert_eq!(events(&mut service), [ServiceEvent::Reset { stream: 64, reason: EndReason::ResourceLimit }]);
    service.handle_closed(0);
    service.handle_request(NOW, 65, RequestOwner::alone(65));
    assert_eq!(events(&mut service), []);
}

#[test]
fn streams_of_one_owner_leave_half_to_others() {
    let mut service = service();
    for stream in 0..64 {
        service.handle_request(NOW, stream, RequestOwner::of_source(1, stream));
    }
    let refused = |stream| ServiceEvent::Reset { stream, reason: EndReason::ResourceLimit };
    assert_eq!(events(&mut service), (32..64).map(refused).collect::<Vec<_>>());
    (64..96).for_each(|stream| service.handle_request(NOW, stream, RequestOwner::of_source(2, stream)));
    assert_eq!(events(&mut service), []);
}

#[test]
fn streams_without_a_query_do_not_block_queries_of_other_circuits() {
    let mut service = service();
    // The streams of one circuit are capped, and its open streams don't block queries of other circuits.
    (0..9).for_each(|stream| service.handle_request(NOW, stream, RequestOwner::alone(1)));
    assert_eq!(events(&mut service), [ServiceEvent::Reset { stream: 8, reason: EndReason::ResourceLimit }]);
    (0..8).for_each(|stream| service.handle_request(NOW, 10 + stream, RequestOwner::alone(2)));
    let rates = Rates { concurrent: 1, ..Rates::default() };
    let mut limited = SearchService::new(ServiceParameters { rates, ..ServiceParameters::default() });
    (0..8).for_each(|stream| limited.handle_request(NOW, stream, RequestOwner::alone(1)));
    send_query(&mut limited, 10, 2);
    assert_eq!(events(&mut limited), [ServiceEvent::Query { stream: 10, request: query() }]);
    // A client that doesn't read its answer doesn't block other queries either.
    send_query(&mut limited, 11, 3);
    assert_eq!(refused(&mut limited, 11), SearchRefusal::RateLimited);
    limited.handle_answer(NOW, 10, &SearchAnswer::Refused(SearchRefusal::EngineFailed));
    send_query(&mut limited, 12, 3);
    events(&mut limited).iter().find(|event| matches!(event, ServiceEvent::Query { stream: 12, .. })).unwrap();
}

#[test]
fn a_closed_stream_frees_its_place_in_the_limits() {
    let mut service = service();
    (0..4).for_each(|stream| send_query(&mut service, stream, 1));
    events(&mut service);
    service.handle_closed(2);
    assert_eq!(events(&mut service), [ServiceEvent::Cancel { stream: 2 }]);
    send_query(&mut service, 4, 1);
    assert_eq!(events(&mut service), [ServiceEvent::Query { stream: 4, request: query() }]);
}

#[test]
fn a_slow_client_is_ended_and_a_slow_engine_is_reported() {
    let mut service = service();
    let parameters = ServiceParameters::default();
    service.handle_request(NOW, 1, RequestOwner::alone(1));
    service.handle_data(NOW, 1, b"x");
    send_query(&mut service, 2, 2);
    events(&mut service);
    assert_eq!(service.poll_timeout(), Some(NOW.after(parameters.query_timeout)));
    service.handle_timeout(NOW.after(parameters.query_timeout));
    assert_eq!(events(&mut service), [ServiceEvent::Reset { stream: 1, reason: EndReason::TimedOut }]);
    let engine_deadline = NOW.after(parameters.answer_timeout);
    service.handle_timeout(engine_deadline);
    assert_eq!(events(&mut service), [ServiceEvent::Cancel { stream: 2 }, ServiceEvent::Write { stream: 2 }]);
    // A client that doesn't read its answer is ended too.
    service.handle_timeout(engine_deadline.after(parameters.stall_timeout));
    assert_eq!(events(&mut service), [ServiceEvent::Reset { stream: 2, reason: EndReason::TimedOut }]);
    assert_eq!(service.poll_timeout(), None);
}

#[test]
fn streams_of_a_third_owner_displace_those_of_two_owners_without_a_query() {
    let mut service = service();
    for stream in 0..64 {
        service.handle_request(NOW, stream, RequestOwner::of_source(stream % 2, stream));
    }
    assert_eq!(events(&mut service), []);
    let reset = |stream| ServiceEvent::Reset { stream, reason: EndReason::ResourceLimit };
    for stream in 100..108 {
        service.handle_request(NOW, stream, RequestOwner::of_source(2, 100));
    }
    let ended = events(&mut service);
    assert_eq!(ended.len(), 8);
    assert!(ended.iter().all(|event| (0..64).any(|stream| *event == reset(stream))), "{ended:?}");
    // An owner at its share displaces only its own slow streams.
    let mut of_one = SearchService::new(ServiceParameters::default());
    (0..32).for_each(|stream| of_one.handle_request(NOW, stream, RequestOwner::of_source(1, stream)));
    of_one.handle_request(NOW, 32, RequestOwner::of_source(1, 32));
    of_one.handle_request(NOW.after(SLOW_AFTER), 33, RequestOwner::of_source(1, 33));
    assert_eq!(events(&mut of_one), [reset(32), reset(0)]);
}

#[test]
fn the_only_stream_of_a_circuit_takes_the_place_of_others_without_a_query() {
    let reset = |stream| [ServiceEvent::Reset { stream, reason: EndReason::ResourceLimit }];
    // Eight on each of eight circuits behind four gateways, all of one age.
    let mut several = service();
    for stream in 0..64 {
        several.handle_request(NOW, stream, RequestOwner::of_source(stream % 4, stream % 8));
    }
    several.handle_request(NOW, 64, RequestOwner::of_source(1, 64));
    assert_eq!(events(&mut several), reset(1), "of a circuit with several, behind the same gateway");
    several.handle_request(NOW, 65, RequestOwner::of_source(1, 64));
    assert_eq!(events(&mut several), reset(65), "the second one of its circuit");
    // One on each of 64 circuits.
    let mut single = service();
    (0..64).for_each(|stream| single.handle_request(NOW, stream, RequestOwner::of_source(stream % 4, stream)));
    let slow_after = ServiceParameters::default().rates.slow_at_cap();
    single.handle_request(NOW.after(slow_after - Duration::from_millis(1)), 64, RequestOwner::of_source(1, 64));
    assert_eq!(events(&mut single), reset(64));
    single.handle_request(NOW.after(slow_after), 65, RequestOwner::of_source(1, 2));
    assert_eq!(events(&mut single), reset(65), "the second one of its circuit");
    single.handle_request(NOW.after(slow_after), 66, RequestOwner::of_source(1, 66));
    assert_eq!(events(&mut single), reset(1));
    single.handle_request(NOW.after(SLOW_AFTER), 67, RequestOwner::of_source(1, 2));
    assert_eq!(events(&mut single), reset(5));
}

#[test]
fn a_query_of_an_owner_with_fewer_replaces_the_oldest_of_the_fullest_owner() {
    let rates = Rates { concurrent: 4, ..Rates::default() };
    let mut service = SearchService::new(ServiceParameters { rates, ..ServiceParameters::default() });
    let send = |service: &mut SearchService<u64>, stream, owner| {
        service.handle_request(NOW, stream, owner);
        service.handle_data(NOW, stream, &query().encode().unwrap());
        service.handle_finished(NOW, stream);
    };
    (1..5).for_each(|stream| send(&mut service, stream, RequestOwner::of_source(1, stream)));
    events(&mut service);
    send(&mut service, 5, RequestOwner::of_source(2, 5));
    let expected = [
        ServiceEvent::Query { stream: 5, request: query() },
        ServiceEvent::Cancel { stream: 1 },
        ServiceEvent::Write { stream: 1 },
    ];
    assert_eq!(events(&mut service), expected);
    assert_eq!(refused(&mut service, 1), SearchRefusal::RateLimited);
}
