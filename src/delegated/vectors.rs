//! Test vectors of `proto/vectors/delegated.json`: framed queries and answers, valid and invalid.
//!
//! The file omits the padding of a frame and has its length instead. If the file differs from the code, the test prints
//! the expected file.

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::{
    Block, EngineName, SearchAnswer, SearchRefusal, SearchRequest, SearchResult,
    frame::{HEADER_LEN, REQUEST_BUCKETS, RESPONSE_BUCKETS, encode},
};
use crate::crypto::vectors::{bytes, cases, read};

const FILE: &str = include_str!("../../proto/vectors/delegated.json");

/// A frame as JSON.
fn to_json(framed: &[u8]) -> Value {
    let end = framed.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    json!({ "begins": HEXLOWER.encode(&framed[..end]), "length": framed.len() })
}

/// A frame from JSON.
fn framed(value: &Value) -> Vec<u8> {
    let mut framed = bytes(&value["begins"]);
    framed.resize(usize::try_from(value["length"].as_u64().unwrap()).unwrap(), 0);
    framed
}

fn request(terms: &str, page: u16, language: Option<&str>) -> SearchRequest {
    SearchRequest::new(EngineName::parse("kiwix").unwrap(), terms, page, language).unwrap()
}

fn queries() -> Vec<Value> {
    let long = "q".repeat(1006);
    let longer = "q".repeat(1007);
    [
        ("plain", request("rust ownership", 1, None)),
        ("every field", request("所有権 \"a & b\"", 2, Some("ja-JP"))),
        ("longest of the smaller size", request(&long, 1, None)),
        ("shortest of the larger size", request(&longer, 1, None)),
    ]
    .map(|(name, request)| {
        json!({
            "name": name,
            "engine": request.engine().as_str(),
            "terms": request.terms(),
            "page": request.page(),
            "language": request.language(),
            "frame": to_json(&request.encode().unwrap()),
        })
    })
    .to_vec()
}

fn outcome(answer: &SearchAnswer) -> Value {
    match answer {
        SearchAnswer::Results { results, total, more } => {
            let result = |result: &SearchResult| json!({ "title": result.title, "link": result.url.as_str(), "snippet": result.snippet });
            json!({ "results": results.iter().map(result).collect::<Vec<_>>(), "total": total, "more": more })
        }
        SearchAnswer::Refused(refusal) => json!({ "refused": format!("{refusal:?}") }),
    }
}

fn answers() -> Vec<Value> {
    let result = |title: &str, link: &str, snippet: &str| SearchResult::new(title, link, None, snippet).unwrap();
    let results = vec![
        result("What is Ownership?", "https://doc.example/book/ch04-01.html", "Ownership is a set of rules."),
        result("所有権とは", "http://[2001:db8::1]:8080/?a=b#c", ""),
    ];
    let many = (0..17).map(|number| result(&format!("Result {number}"), "https://doc.example/", &"x".repeat(490)));
    [
        ("results", SearchAnswer::Results { results, total: Some(46), more: true }),
        ("nothing found", SearchAnswer::Results { results: Vec::new(), total: Some(0), more: false }),
        ("of the second size", SearchAnswer::Results { results: many.collect(), total: None, more: true }),
        ("refused", SearchAnswer::Refused(SearchRefusal::RateLimited)),
        ("kept out", SearchAnswer::Refused(SearchRefusal::EngineBlocked(Block::Captcha))),
    ]
    .map(
        |(name, answer)| json!({ "name": name, "says": outcome(&answer), "frame": to_json(&answer.encode().unwrap()) }),
    )
    .to_vec()
}

/// A length-delimited field of a Protocol Buffers message.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(value.len()).unwrap()], value].concat()
}

fn bad_queries() -> Vec<Value> {
    let engine = field(1, b"kiwix");
    let page = |page: u8| vec![3 << 3, page];
    let message = |parts: &[Vec<u8>]| encode(&parts.concat(), REQUEST_BUCKETS).unwrap();
    let good = message(&[engine.clone(), field(2, b"x"), page(1)]);
    assert!(SearchRequest::decode(&good).is_ok());
    let (mut padded, mut too_large, mut short) = (good.clone(), good.clone(), good.clone());
    *padded.last_mut().unwrap() = 1;
    too_large.resize(4096, 0);
    short.truncate(1023);
    let mut long = good.clone();
    long[..HEADER_LEN].copy_from_slice(&4093_u32.to_be_bytes());
    long.resize(4096, 0);
    [
        ("padding that isn't zero", padded),
        ("not the smallest size", too_large),
        ("cut short", short),
        ("a message longer than any frame", long),
        ("no engine", message(&[field(2, b"x"), page(1)])),
        ("an engine in capitals", message(&[field(1, b"Kiwix"), field(2, b"x"), page(1)])),
        ("no terms", message(&[engine.clone(), page(1)])),
        ("terms of white space", message(&[engine.clone(), field(2, b" \xe3\x80\x80"), page(1)])),
        ("a line feed", message(&[engine.clone(), field(2, b"a\nb"), page(1)])),
        ("a control character of Latin-1", message(&[engine.clone(), field(2, b"a\xc2\x85b"), page(1)])),
        ("not UTF-8", message(&[engine.clone(), field(2, b"\xff"), page(1)])),
        ("no page", message(&[engine.clone(), field(2, b"x")])),
        ("page 51", message(&[engine.clone(), field(2, b"x"), page(51)])),
        ("no language tag", message(&[engine, field(2, b"x"), page(1), field(4, b"en_GB")])),
    ]
    .map(|(name, framed)| json!({ "name": name, "frame": to_json(&framed) }))
    .to_vec()
}

/// An answer of an exit that doesn't clean results, and the results after the client has cleaned them.
fn unclean_answers() -> Vec<Value> {
    let result = |title: &str, link: &str, snippet: &str| {
        let fields = [(1, title), (2, link), (3, snippet)];
        field(1, &fields.map(|(number, value)| field(number, value.as_bytes())).concat())
    };
    let unclean = [
        result("a\u{202e}b\n c", "https://example.org/?utm_source=x&q=1", "\u{1b}[31mred"),
        result("a script", "javascript:alert(1)", ""),
        result("", "https://user:secret@example.org/", ""),
        result("wrapped", "https://www.google.com/url?q=https%3A%2F%2Fexample.org%2F", ""),
        result("no link", "", ""),
    ];
    let framed = encode(&unclean.concat(), RESPONSE_BUCKETS).unwrap();
    let says = outcome(&SearchAnswer::decode(&framed).unwrap());
    vec![json!({ "name": "what a client makes of it", "says": says, "frame": to_json(&framed) })]
}

#[test]
fn the_vector_file_equals_the_encoded_messages() {
    let expected = json!({
        "specification": "proto/09-delegated.md sections 2, 3 and 5",
        "queries": queries(),
        "answers": answers(),
        "refused_queries": bad_queries(),
        "unclean_answers": unclean_answers(),
    });
    let found: Value = serde_json::from_str(FILE).unwrap_or_default();
    assert!(
        found == expected,
        "proto/vectors/delegated.json must be\n{}",
        serde_json::to_string_pretty(&expected).unwrap()
    );
}

#[test]
fn the_frames_of_the_vector_file_decode_to_its_values() {
    let file = read(FILE);
    for case in cases(&file, "queries") {
        let request = SearchRequest::decode(&framed(&case["frame"])).unwrap();
        let (engine, terms) = (request.engine().as_str(), request.terms());
        assert_eq!((json!(engine), json!(terms)), (case["engine"].clone(), case["terms"].clone()));
        assert_eq!(
            (json!(request.page()), json!(request.language())),
            (case["page"].clone(), case["language"].clone())
        );
    }
    for case in cases(&file, "answers").iter().chain(cases(&file, "unclean_answers")) {
        assert_eq!(outcome(&SearchAnswer::decode(&framed(&case["frame"])).unwrap()), case["says"], "{}", case["name"]);
    }
    for case in cases(&file, "refused_queries") {
        assert!(SearchRequest::decode(&framed(&case["frame"])).is_err(), "{}", case["name"]);
    }
}
