//! Fuzz targets: messages of delegated requests between exit and client, and the cleaning of URLs and text.

use super::FuzzTarget;
use crate::delegated::{
    Block, EngineName, SearchAnswer, SearchRefusal, SearchRequest, SearchResult, clean_url, fields,
    frame::REQUEST_BUCKETS, frame::RESPONSE_BUCKETS, frame::max_frame_len, message::HttpResponse, text, url::Url,
};

pub(super) const TARGETS: &[FuzzTarget] = &[
    FuzzTarget { name: "search_request", run: search_request, seeds: request_seeds },
    FuzzTarget { name: "search_answer", run: search_answer, seeds: answer_seeds },
    FuzzTarget { name: "link", run: link, seeds: link_seeds },
    FuzzTarget { name: "text", run: text, seeds: text_seeds },
    FuzzTarget { name: "http_response", run: http_response, seeds: response_seeds },
];

/// A decoded query can be encoded, fits a frame, and decodes to an equal query again.
fn search_request(bytes: &[u8]) {
    let Ok(request) = SearchRequest::decode(bytes) else { return };
    let again = request.encode().expect("a decoded value can be encoded");
    assert!(again.len() <= max_frame_len(REQUEST_BUCKETS));
    assert_eq!(SearchRequest::decode(&again), Ok(request));
}

fn request_seeds() -> Vec<Vec<u8>> {
    let engine = EngineName::parse("kiwix").unwrap();
    [("rust ownership", 1, None), ("所有権", 2, Some("ja")), (&"q".repeat(1500), 50, Some("pt-BR"))]
        .map(|(terms, page, language)| {
            SearchRequest::new(engine.clone(), terms, page, language).unwrap().encode().unwrap()
        })
        .to_vec()
}

/// A decoded answer can be encoded, fits a frame, and decodes to an equal answer again.
fn search_answer(bytes: &[u8]) {
    let Ok(answer) = SearchAnswer::decode(bytes) else { return };
    let again = answer.encode().expect("a decoded value can be encoded");
    assert!(again.len() <= max_frame_len(RESPONSE_BUCKETS));
    assert_eq!(SearchAnswer::decode(&again), Ok(answer));
}

fn answer_seeds() -> Vec<Vec<u8>> {
    let result = |number: u64| {
        let link = format!("https://example.org/{number}?a=b#c");
        SearchResult::new("A title", &link, None, "And a snippet").unwrap()
    };
    [
        SearchAnswer::Results { results: (0..3).map(result).collect(), total: Some(46), more: true },
        SearchAnswer::Results { results: Vec::new(), total: None, more: false },
        SearchAnswer::Refused(SearchRefusal::EngineBlocked(Block::Captcha)),
    ]
    .map(|answer| answer.encode().unwrap())
    .to_vec()
}

/// A cleaned URL is http or https, has no user name and no password, and is unchanged by another cleaning.
fn link(bytes: &[u8]) {
    let input = String::from_utf8_lossy(bytes);
    let base = Url::parse("https://engine.example/search?q=x").unwrap();
    for base in [None, Some(&base)] {
        let Some(cleaned) = clean_url::clean(&input, base) else { continue };
        assert!(matches!(cleaned.scheme(), "http" | "https") && cleaned.host_str().is_some());
        // An authority without `@` has no user name and no password.
        let authority = cleaned.as_str().split('/').nth(2).unwrap_or_default();
        assert!(!authority.contains('@'));
        assert!(cleaned.as_str().len() <= clean_url::MAX_URL_LEN);
        assert_eq!(clean_url::clean(cleaned.as_str(), None).unwrap().as_str(), cleaned.as_str());
    }
}

fn link_seeds() -> Vec<Vec<u8>> {
    [
        "https://example.org/a?utm_source=x&b=%C3%A4#c",
        "https://www.google.com/url?q=https%3A%2F%2Fexample.org%2F&usg=x",
        "//duckduckgo.com/l/?uddg=https%3A%2F%2Fexample.org%2F",
        "https://www.bing.com/ck/a?u=a1aHR0cHM6Ly9leGFtcGxlLm9yZy8_YQ",
        "https://r.search.yahoo.com/_ylt=x/RU=https%3a%2f%2fexample.org%2f/RK=2/RS=y-",
        "http://user:secret@[2001:db8::1]:8080/../a",
        "javascript:alert(1)",
        "/relative",
    ]
    .map(|link| link.as_bytes().to_vec())
    .to_vec()
}

/// A plain text is within the maximum length, has no control characters, and is unchanged by another cleaning.
fn text(bytes: &[u8]) {
    const MAX_LENGTH: usize = 40;
    let plain = text::plain(&String::from_utf8_lossy(bytes), MAX_LENGTH);
    assert!(plain.chars().count() <= MAX_LENGTH);
    assert!(!plain.chars().any(|character| character.is_control() || ('\u{202a}'..='\u{202e}').contains(&character)));
    assert_eq!(text::plain(&plain, MAX_LENGTH), plain);
}

fn text_seeds() -> Vec<Vec<u8>> {
    ["a title", " a\t\u{202e}b\u{0}\n c ", "所有権とは何か", "ما هي الملكية؟"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

/// A decoded response has a final status and no prohibited field.
fn http_response(bytes: &[u8]) {
    let Ok(response) = HttpResponse::decode(bytes.to_vec()) else { return };
    assert!((200..600).contains(&response.status));
    assert!(response.body.len() < bytes.len());
    let is_permitted = |name: &str| !fields::is_hop_by_hop(name) && !fields::is_removed_from_responses(name);
    assert!(response.fields.iter().all(|(name, _)| is_permitted(name)));
}

fn response_seeds() -> Vec<Vec<u8>> {
    [
        &b"\x03\x40\xc8\x04etag\x011\x00\x05hello\x06 world\x00\x00"[..],
        b"\x03\x40\x67\x04link\x01x\x00\x40\xcc\x00",
        b"\x03\x41\xad\x0cproxy-status\x20umbel; error=http_request_denied\x00\x00\x00",
        b"\x03\x40\xc8\x0aconnection\x01x\x01x\x011\x00\x01a\x00\x07trailer\x011\x00",
    ]
    .map(<[u8]>::to_vec)
    .to_vec()
}
