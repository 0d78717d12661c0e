//! Tests of the search page, the reader view and the API over an overlay of scripted exits.

use core::time::Duration;

use rand::{SeedableRng as _, rngs::StdRng};
use reqwest::header::HeaderMap;
use tokio::{io::AsyncWriteExt as _, time::timeout};

use super::*;
use crate::{
    delegated::{Block, SearchAnswer, SearchRefusal, SearchRequest},
    exit::outbound::testing::{TestRoot, https_server},
    io::{testing::target_server, tls::Tls},
    requests::search::testing::{ExitScript, Overlay, ScriptedReply, honest, refusing, result},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// Starts a search page over `overlay`, and returns its address.
async fn start(overlay: &Overlay) -> SocketAddr {
    start_with_tls(overlay, Tls::default()).await
}

async fn start_with_tls(overlay: &Overlay, tls: Tls) -> SocketAddr {
    start_within(overlay, tls, MAX_CONNECTIONS).await
}

async fn start_within(overlay: &Overlay, tls: Tls, connections: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requester = Requester::new(overlay.clone(), tls);
    let page = SearchPage {
        searcher: overlay.searcher(),
        reader: PageReader::new(requester.clone()),
        requester,
        check: ProxyCheck::new(&mut StdRng::seed_from_u64(1)),
        socks: "127.0.0.1:9350".parse().unwrap(),
    };
    tokio::spawn(serve(listener, page, connections));
    address
}

/// Starts a search page over an overlay with these exits.
async fn start_with_exits(exits: &[ExitScript]) -> SocketAddr {
    start(&Overlay::new(exits)).await
}

/// The response to a GET of `path` with additional header fields.
async fn request(address: SocketAddr, path: &str, fields: &[(&str, &str)]) -> (u16, HeaderMap, String) {
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let mut builder = client.get(format!("http://{address}{path}"));
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    let response = timeout(DEADLINE, builder.send()).await.unwrap().unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    (status, headers, response.text().await.unwrap())
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let (status, _, text) = request(address, path, &[]).await;
    (status, text)
}

/// All values of an attribute in `html`.
fn values<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    html.split(&format!(" {attribute}=\"")).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// Asserts that `html` has no URL of another site, no script and no style.
fn assert_harmless(html: &str) {
    for attribute in ["href", "src", "action"] {
        for value in values(html, attribute) {
            let is_local = value.starts_with('/') && !value.starts_with("//") || value.starts_with('#');
            assert!(is_local, "{attribute}={value}");
        }
    }
    let html = html.to_ascii_lowercase();
    for bad in [
        "<script>",
        "<style",
        "<iframe",
        "<object",
        "<svg",
        "javascript:",
        " onclick",
        " onerror",
        " style=",
        "http-equiv",
    ] {
        assert!(!html.contains(bad), "{bad} in {html}");
    }
}

#[tokio::test]
async fn results_are_text_with_urls_of_the_reader_view_and_the_path() {
    let address = start_with_exits(&[|_| {
        let hostile =
            result("<script>alert(1)</script>", "https://a.example/?x=\"><img src=x onerror=y>", "<b onclick=x>'\"");
        let answer = SearchAnswer::Results { results: vec![hostile], total: Some(1), more: false };
        ScriptedReply::Answer(answer)
    }])
    .await;
    let (status, html) = get(address, "/search?q=%3Cscript%3E%22+onclick").await;
    assert_eq!(status, 200);
    assert!(html.contains("&lt;script&gt;"), "{html}");
    for bad in ["<script>", "<img src=x", "<b onclick"] {
        assert!(!html.contains(bad), "{bad} in {html}");
    }
    let links = values(&html, "href");
    assert!(!links.is_empty(), "{html}");
    for value in links.into_iter().chain(values(&html, "src")) {
        assert!(value.starts_with('/') || value.starts_with('#'), "{value}");
    }
    for words in ["First relay", "Middle relay", "Exit", "7 ms"] {
        assert!(html.contains(words), "{words}");
    }
}

#[tokio::test]
async fn a_page_of_results_has_the_urls_of_the_next_and_the_previous_page() {
    let address = start_with_exits(&[honest]).await;
    let (_, first) = get(address, "/search?q=a+b").await;
    assert!(first.contains("/search?q=a+b&amp;engine=kiwix&amp;page=2") && !first.contains("rel=\"prev\""), "{first}");
    let (_, last) = get(address, "/search?q=a+b&engine=kiwix&page=3&language=ja").await;
    assert!(last.contains("page=2&amp;language=ja") && !last.contains("rel=\"next\""), "{last}");
}

#[tokio::test]
async fn queries_in_any_script_are_shown_and_invalid_queries_are_explained() {
    let address = start_with_exits(&[honest]).await;
    for (encoded, terms) in [("%E6%89%80%E6%9C%89%E6%A8%A9", "所有権"), ("%D9%85%D9%84%D9%83%D9%8A%D8%A9", "ملكية")]
    {
        let (status, html) = get(address, &format!("/search?q={encoded}")).await;
        assert_eq!(status, 200);
        assert!(html.contains(&format!("About {terms}")));
    }
    for (query, words) in [("q".repeat(10_000), "longer than"), ("a%07b".to_owned(), "control characters")] {
        let (status, html) = get(address, &format!("/search?q={query}")).await;
        assert_eq!(status, 400);
        assert!(html.contains(words) && html.contains("Nothing was sent"), "{html}");
    }
    for path in
        ["/search?q=a&page=x", "/search?q=a&engine=A/B", "/read", "/read?url=javascript:x", "/leave?url=ftp://a/"]
    {
        assert_eq!(get(address, path).await.0, 400, "{path}");
    }
    assert_eq!(get(address, "/search?q=+").await.0, 200, "an empty query shows the home page");
    assert_eq!(get(address, "/nowhere").await.0, 404);
}

#[tokio::test]
async fn a_failed_exit_is_shown_with_the_reason() {
    let address = start_with_exits(&[|_| refusing(SearchRefusal::EngineBlocked(Block::Captcha)), honest]).await;
    let (status, html) = get(address, "/search?q=a").await;
    assert_eq!(status, 200);
    assert!(html.contains("sent the exit a CAPTCHA"), "{html}");
    let (status, html) = get(start_with_exits(&[|_| ScriptedReply::Reset]).await, "/search?q=a").await;
    assert_eq!(status, 502);
    assert!(html.contains("The exit or the circuit failed"), "{html}");
}

#[tokio::test]
async fn requests_of_pages_of_other_sites_are_refused() {
    let overlay = Overlay::new(&[honest]);
    let address = start(&overlay).await;
    let own = format!("http://{address}");
    let refused: &[&[(&str, &str)]] = &[
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "same-origin"), ("origin", "http://evil.example")],
        &[("origin", "http://evil.example")],
        &[("origin", "null")],
        &[("referer", "http://evil.example/")],
        &[("referer", &format!("{own}.evil.example/"))],
        &[("host", "evil.example")],
        &[("host", &format!("evil.example:{}", address.port()))],
        &[("host", "127.0.0.1:1")],
        &[("sec-purpose", "prefetch;prerender")],
        &[("purpose", "prefetch")],
    ];
    for fields in refused {
        for path in ["/search?q=a", "/read?url=http://origin.test/", "/go?url=http://a.example/"] {
            let (status, _, text) = request(address, path, fields).await;
            assert!(matches!(status, 403 | 421 | 503), "{path} {fields:?}: {status}");
            assert!(!text.contains("About"), "{text}");
        }
    }
    assert!(overlay.queried().is_empty() && overlay.direct.isolations().is_empty());
    let (_, _, text) = request(address, "/search?q=a", &[("sec-fetch-site", "cross-site")]).await;
    assert!(text.contains("another site's page") && text.contains(&format!("{own}/\n")), "{text}");
    let allowed: &[&[(&str, &str)]] = &[
        &[],
        &[("sec-fetch-site", "none")],
        &[("sec-fetch-site", "same-origin"), ("referer", &format!("{own}/"))],
        &[("origin", &own), ("referer", &format!("{own}/search?q=b"))],
        &[("host", &format!("localhost:{}", address.port()))],
    ];
    for fields in allowed {
        assert_eq!(request(address, "/search?q=a", fields).await.0, 200, "{fields:?}");
    }
}

#[tokio::test]
async fn the_api_of_the_command_line_is_closed_to_browsers() {
    let address = start_with_exits(&[honest]).await;
    let page: &[(&str, &str)] = &[("umbel-api", "1"), ("sec-fetch-site", "same-origin")];
    let origin: &[(&str, &str)] = &[("umbel-api", "1"), ("origin", &format!("http://{address}"))];
    for fields in [&[], page, origin] {
        let (status, _, text) = request(address, "/api/engines", fields).await;
        assert_eq!(status, 403, "{fields:?}");
        assert!(text.contains("only for Umbel's command line") && !text.contains("another site"), "{fields:?}: {text}");
    }
    let (status, _, text) =
        request(address, "/api/engines", &[("umbel-api", "1"), ("sec-fetch-site", "cross-site")]).await;
    assert!(status == 403 && text.contains("another site's page"), "{status}: {text}");
    let (status, _, text) = request(address, "/api/engines", &[("umbel-api", "1")]).await;
    assert_eq!(status, 200);
    assert!(text.contains("\"kiwix\""), "{text}");
    // The preflight request of a page that sets the field.
    let preflight = reqwest::Client::builder().no_proxy().build().unwrap();
    let preflight = preflight
        .request(reqwest::Method::OPTIONS, format!("http://{address}/api/search"))
        .header("origin", "http://evil.example")
        .header("access-control-request-headers", "umbel-api");
    let answer = preflight.send().await.unwrap();
    assert_eq!(answer.status(), 403);
    assert!(!answer.headers().contains_key("access-control-allow-headers"));
}

#[tokio::test]
async fn every_answer_has_the_security_header_fields() {
    let address = start_with_exits(&[honest]).await;
    let paths = [
        "/",
        "/search?q=a",
        "/read?url=http://refused.test/",
        "/leave?url=http://a.example/",
        "/go?url=http://a.example/",
    ];
    let files = ["/style.css", "/keys.js", "/icon.svg", "/opensearch.xml", "/nowhere", "/api/engines"];
    for path in paths.into_iter().chain(files) {
        let (_, fields, _) = request(address, path, &[]).await;
        let field = |name: &str| fields.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        let policy = field("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{path}: {policy}");
        for (name, value) in [
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("x-dns-prefetch-control", "off"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(field(name), value, "{path}: {name}");
        }
        assert_eq!(fields.get_all("content-security-policy").iter().count(), 1);
    }
}

/// A server that answers every request with `response`.
async fn site(response: String) -> SocketAddr {
    target_server(move |mut socket| {
        let response = response.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = tokio::io::AsyncReadExt::read_u8(&mut socket).await else { return };
                head.push(byte);
            }
            let _ = socket.write_all(response.as_bytes()).await;
            let _ = socket.shutdown().await;
        }
    })
    .await
}

fn html_page(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_hostile_page_is_shown_without_scripts_styles_and_foreign_urls() {
    let body = r##"<!doctype html><html><head><title>Evil &lt;b&gt; title</title><base href="http://other.example/dir/">
        <meta http-equiv="refresh" content="0;url=http://evil.example/"><link rel="stylesheet" href="http://evil.example/a.css">
        <style>body { background: url(http://evil.example/b) }</style></head><body onload="evil()" style="color:red">
        <script>evil()</script><img src="http://evil.example/pixel.png" onerror="evil()"><iframe src="http://evil.example/"></iframe>
        <form action="http://evil.example/"><input name="q"><button>Go</button></form><object data="http://evil.example/"></object>
        <svg><a href="javascript:evil()"><text>x</text></a></svg><math><mtext><style><img src=x onerror=evil()></style></mtext></math>
        <video src="http://evil.example/v" poster="http://evil.example/p"></video><p id="one" class="brand" onclick="evil()">Kept text.</p>
        <a href="javascript:evil()">bad</a> <a href="page?utm_source=x&a=1" ping="http://evil.example/" target="_blank">good</a>
        <a href="#one">place</a> <a href="/other#two">place elsewhere</a> <a href="//evil.example/x">slashes</a> <a href="data:text/html,x">data</a>
        <noscript><img src="http://evil.example/n"></noscript><template><script>evil()</script></template></body></html>"##;
    let site = site(html_page(body)).await;
    let address = start_with_exits(&[]).await;
    let (status, html) = get(address, &format!("/read?url=http://origin.test:{}/", site.port())).await;
    assert_eq!(status, 200);
    assert_harmless(&html);
    assert!(!html.contains("evil()") && !html.contains("<form action=\"http"), "{html}");
    assert!(html.contains("Kept text.") && html.contains("Evil &lt;b&gt; title"), "{html}");
    assert!(html.contains("href=\"/read?url=http%3A%2F%2Fother.example%2Fdir%2Fpage%3Fa%3D1\""), "{html}");
    assert!(html.contains("href=\"#page-one\"") && html.contains("id=\"page-one\""), "{html}");
    assert!(html.contains("href=\"/read?url=http%3A%2F%2Fother.example%2Fother#page-two\""), "{html}");
    assert!(html.contains("was not encrypted by"), "{html}");
    assert!(!html.contains("<script"), "a page with foreign content has no script: {html}");
}

#[tokio::test]
async fn a_page_over_https_requires_a_valid_certificate() {
    let root = TestRoot::new();
    let tls = Tls::new([root.file.path()]).unwrap();
    let address = start_with_tls(&Overlay::new(&[]), tls).await;
    for (name, status) in [("origin.test", 200), ("other.test", 502)] {
        let site = https_server(root.server(&[name]), |_| async {
            let page = http_body_util::Full::new(axum::body::Bytes::from_static(b"<p>Sealed words.</p>"));
            hyper::Response::builder().header("content-type", "text/html").body(page).unwrap()
        })
        .await;
        let (actual, html) = get(address, &format!("/read?url=https://origin.test:{}/", site.port())).await;
        assert_eq!((actual, html.contains("Sealed words.")), (status, status == 200), "{html}");
        assert!(!html.contains("was not encrypted by"), "{html}");
    }
}

#[tokio::test]
async fn the_reader_view_shows_the_main_part_of_a_page() {
    let long = "Word after word. ".repeat(40);
    let body =
        format!("<body><nav>Menu menu</nav><main><h1>Head</h1><p>{long}</p></main><footer>Imprint</footer></body>");
    let site = site(html_page(&body)).await;
    let (_, html) = get(start_with_exits(&[]).await, &format!("/read?url=http://origin.test:{}/", site.port())).await;
    assert!(html.contains("Word after word.") && !html.contains("Menu menu") && !html.contains("Imprint"), "{html}");
}

#[tokio::test]
async fn the_answer_for_a_deeply_nested_page_is_bounded() {
    let address = start_with_exits(&[]).await;
    let endless = |piece: &str| piece.repeat((1 << 20) / piece.len());
    let fonts: String = (0..20_000).map(|number| format!("<font color={number}>")).collect();
    let attribute = format!("<b title='{}'>", "x".repeat(100_000));
    let mut pages: Vec<_> =
        ["<div>", "<b>", "<a href=x>", "<table>", "<p><b><i><font>", "<svg><math>", "<!--"].map(endless).into();
    let shallow = format!("{}{}", "<div>".repeat(200), endless("</b>"));
    pages.extend([fonts + &endless("<p>"), attribute + &endless("<p>"), shallow]);
    for page in pages {
        let site = site(html_page(&page)).await;
        let (status, html) = get(address, &format!("/read?url=http://origin.test:{}/", site.port())).await;
        assert!(matches!(status, 200 | 502), "{status}");
        assert!(html.len() < 4 << 20, "{}", html.len());
    }
}

#[tokio::test]
async fn plain_text_is_shown_and_other_content_types_are_refused() {
    let address = start_with_exits(&[]).await;
    let read = |response: &str| {
        let response = response.to_owned();
        async move { get(address, &format!("/read?url=http://origin.test:{}/", site(response).await.port())).await }
    };
    let (_, html) = read("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n<script>plain</script>").await;
    assert!(html.contains("&lt;script&gt;plain"), "{html}");
    let (status, html) = read("HTTP/1.1 200 OK\r\nContent-Type: application/pdf\r\n\r\n%PDF").await;
    assert!(status == 502 && html.contains("application/pdf") && html.contains("umbel fetch"), "{html}");
    let (status, html) = read("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\nx").await;
    assert!(status == 502 && html.contains("content encoding"), "{html}");
    let (status, html) = read("HTTP/1.1 404 Not Found\r\nContent-Type: image/png\r\nContent-Length: 0\r\n\r\n").await;
    assert!(status == 502 && html.contains("404"), "{html}");
    let (status, _) = read("HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n").await;
    assert_eq!(status, 502);
    let (status, html) = read("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n").await;
    assert!(status == 502 && html.contains("redirects too often"), "{html}");
    let (status, _) = read("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 99999999\r\n\r\n").await;
    assert_eq!(status, 502);
    let (status, html) = get(address, "/read?url=http://notready.test/").await;
    assert!(status == 503 && html.contains("no consensus yet"), "{html}");
}

#[tokio::test]
async fn a_page_in_a_legacy_encoding_is_decoded() {
    let shift_jis = [0x83, 0x65, 0x83, 0x58, 0x83, 0x67];
    let decoded = |kind: &str, head: &str| {
        let bytes: Vec<u8> = head.bytes().chain(shift_jis).collect();
        cleaned_page(kind, &bytes, &"http://origin.test/".parse().unwrap()).unwrap().1
    };
    assert!(decoded("text/html; charset=Shift_JIS", "").contains("テスト"));
    assert!(decoded("text/html", "<meta charset='shift_jis'>").contains("テスト"));
    assert!(!decoded("text/html", "").contains("テスト"));
}

#[tokio::test]
async fn each_page_has_a_separate_isolation_including_its_redirects() {
    let last = site(html_page("<p>There.</p>")).await;
    let moved = format!("HTTP/1.1 301 Moved\r\nLocation: http://user@origin.test:{}/\r\n\r\n", last.port());
    let first = site(moved).await;
    let overlay = Overlay::new(&[]);
    let address = start(&overlay).await;
    for _ in 0..2 {
        let (_, html) = get(address, &format!("/read?url=http://origin.test:{}/", first.port())).await;
        assert!(html.contains("There."), "{html}");
    }
    let isolations = overlay.direct.isolations();
    assert_eq!(isolations.len(), 4);
    assert!(isolations[0] == isolations[1] && isolations[2] == isolations[3] && isolations[0] != isolations[2]);
}

#[tokio::test]
async fn the_confirmation_has_no_url_of_the_target() {
    let address = start_with_exits(&[]).await;
    let (status, html) = get(address, "/leave?url=https%3A%2F%2Fplanted.example%2Fonly-you").await;
    assert_eq!(status, 200);
    assert!(html.contains("https://planted.example/only-you"), "the URL is shown as text");
    let outside: Vec<_> = values(&html, "href").into_iter().filter(|value| !value.starts_with('/')).collect();
    assert!(outside.is_empty(), "{outside:?}");
    let images: Vec<_> = values(&html, "src").into_iter().filter(|value| !value.starts_with('/')).collect();
    assert!(images.len() == 1 && images[0].starts_with("http://[ff11:"), "{images:?}");
    let (status, fields, _) = request(address, "/go?url=https%3A%2F%2Fplanted.example%2Fonly-you", &[]).await;
    assert_eq!((status, fields["location"].to_str().unwrap()), (303, "https://planted.example/only-you"));
}

#[tokio::test]
async fn the_page_has_an_opensearch_description() {
    let address = start_with_exits(&[honest]).await;
    let (_, fields, text) = request(address, "/opensearch.xml", &[]).await;
    assert!(fields["content-type"].to_str().unwrap().starts_with("application/opensearchdescription+xml"));
    let template = format!("http://{address}/search?q={{searchTerms}}");
    assert!(text.contains(&template), "{text}");
    let (_, home) = get(address, "/").await;
    assert!(home.contains("rel=\"search\" href=\"/opensearch.xml\""), "{home}");
}

#[tokio::test]
async fn the_api_returns_results_comparisons_and_reasons() {
    fn reversed(request: &SearchRequest) -> ScriptedReply {
        let ScriptedReply::Answer(SearchAnswer::Results { mut results, total, more }) = honest(request) else {
            panic!()
        };
        results.reverse();
        ScriptedReply::Answer(SearchAnswer::Results { results, total, more })
    }
    let address = start_with_exits(&[honest, reversed]).await;
    let post = |body: &'static str| async move {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(format!("http://{address}/api/search")).header("umbel-api", "1").body(body);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.bytes().await.unwrap())
    };
    let (status, body) = post(r#"{"terms":"rust"}"#).await;
    let searched: api::ApiResults = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, searched.results.len(), searched.path.len(), searched.page), (200, 2, 3, 1));
    let (_, body) = post(r#"{"terms":"rust","exits":2}"#).await;
    let compared: api::ApiComparison = serde_json::from_slice(&body).unwrap();
    assert!(!compared.agree && compared.rows[0].places == [Some(1), Some(2)]);
    for bad in [
        r#"{"terms":""}"#,
        r#"{"terms":"a","engine":"A b"}"#,
        r#"{"terms":"a","exits":9}"#,
        r#"{"terms":"a","x":1}"#,
        "x",
    ] {
        let (status, body) = post(bad).await;
        assert_eq!(status, 400, "{bad}");
        serde_json::from_slice::<api::ApiFailure>(&body).unwrap();
    }
}

#[tokio::test]
async fn a_browser_beyond_the_cap_gets_a_reply_at_once() {
    let address = start_within(&Overlay::new(&[]), Tls::default(), 1).await;
    let first = TcpStream::connect(address).await.unwrap();
    let (status, headers, text) = request(address, "/", &[]).await;
    assert_eq!((status, headers["retry-after"].to_str().unwrap()), (503, "1"));
    assert!(text.contains("all connections of this port are in use"), "{text}");
    drop(first);
    let served = async { while get(address, "/").await.0 != 200 {} };
    timeout(DEADLINE, served).await.unwrap();
}
