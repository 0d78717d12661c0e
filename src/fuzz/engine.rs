//! Fuzz targets: descriptions and answers of search engines.

use url::Url;

use super::FuzzTarget;
use crate::{
    delegated::{EngineName, MAX_RESULTS, SearchAnswer, SearchRequest},
    engine::{Engine, Response},
};

pub(super) const TARGETS: &[FuzzTarget] = &[
    FuzzTarget { name: "engine_description", run: description, seeds: description_seeds },
    FuzzTarget { name: "engine_answer", run: answer, seeds: answer_seeds },
];

fn request() -> SearchRequest {
    let engine = EngineName::parse("engine").unwrap();
    SearchRequest::new(engine, "a&b=../{c} 所", 2, Some("en")).unwrap()
}

/// A valid description yields http or https URLs, and the terms of a query don't change the URL's origin.
fn description(bytes: &[u8]) {
    let origin = Url::parse("http://origin.example:8080/description.xml").unwrap();
    let Ok(engine) = Engine::describe(bytes, Some(&origin), None) else { return };
    let [one, other] = ["x", "/@other.example/"].map(|terms| {
        let request = SearchRequest::new(engine.name().clone(), terms, 1, None).unwrap();
        engine.http_request(&request).expect("the URL template can contain the terms").url
    });
    assert!(matches!(one.scheme(), "http" | "https"));
    assert_eq!(one.origin(), other.origin());
    let _ = engine.http_request(&request());
}

fn description_seeds() -> Vec<Vec<u8>> {
    let shipped = ["wikipedia", "searxng", "kiwix"].map(|name| {
        let path = format!("{}/deploy/engines/{name}.xml", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).unwrap()
    });
    shipped.into_iter().chain([include_bytes!("../engine/tests/kiwix-description.xml").to_vec()]).collect()
}

/// The media type and the result selectors of each answer format.
const FORMATS: [(&str, &str); 5] = [
    ("application/rss+xml", ""),
    ("application/json", ""),
    ("application/json", r#"select="/a" total="/t" title="/title" link="/p/{/title}" snippet="/s""#),
    ("application/x-suggestions+json", ""),
    ("text/html", r#"select="div.result" title="h2" link="h2 a" snippet="p""#),
];

fn engines() -> impl Iterator<Item = Engine> {
    FORMATS.into_iter().map(|(media, results)| {
        let results = if results.is_empty() { String::new() } else { format!(r#"<u:results type="{media}" {results}/>"#) };
        let document = format!(
            r#"<OpenSearchDescription xmlns="http://a9.com/-/spec/opensearch/1.1/" xmlns:u="urn:umbel:engine">
               <ShortName>e</ShortName><Url type="{media}" template="http://engine.example/?q={{searchTerms}}"/>{results}
               </OpenSearchDescription>"#
        );
        Engine::describe(document.as_bytes(), None, None).unwrap()
    })
}

/// The cleaned answer to any response of an engine fits a frame, and the frame decodes to an equal answer.
fn answer(bytes: &[u8]) {
    let url = Url::parse("http://engine.example/search").unwrap();
    for engine in engines() {
        let answer = engine.read(&request(), &Response { url: &url, status: 200, body: bytes });
        if let SearchAnswer::Results { results, .. } = &answer {
            assert!(results.len() <= MAX_RESULTS);
        }
        let framed = answer.encode().expect("an answer fits its frame");
        assert_eq!(SearchAnswer::decode(&framed), Ok(answer));
    }
}

fn answer_seeds() -> Vec<Vec<u8>> {
    let others = [
        r#"<feed xmlns="http://www.w3.org/2005/Atom"><entry><title type="html">&lt;b>One</title><link href="/a"/>
           <content type="xhtml"><div>Some <i>content</i></div></content></entry></feed>"#,
        r#"{"number_of_results": 9, "results": [{"url": "https://example.org/", "title": "A &amp; b", "content": "c"}]}"#,
        r#"{"t": 9, "a": [{"title": "A title", "s": "<b>x</b>"}]}"#,
        r#"["x", ["A", "B"], ["first"], ["https://example.org/a", "https://example.org/b"]]"#,
        r#"<div class=result><h2><a href="/a">O<b>n</b>e</a></h2><p>Text<script>x</script></div>"#,
        r#"<html><form><div class="g-recaptcha"></div></form>"#,
    ];
    let kiwix = include_bytes!("../engine/tests/kiwix.xml").to_vec();
    others.iter().map(|body| body.as_bytes().to_vec()).chain([kiwix]).collect()
}
