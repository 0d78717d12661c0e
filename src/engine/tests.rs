//! Tests of descriptions, request URLs and answers of search engines.

use std::fs;

use super::*;

fn name(text: &str) -> EngineName {
    EngineName::parse(text).unwrap()
}

fn request(terms: &str, page: u16, language: Option<&str>) -> SearchRequest {
    SearchRequest::new(name("engine"), terms, page, language).unwrap()
}

fn document(body: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
        <OpenSearchDescription xmlns="http://a9.com/-/spec/opensearch/1.1/" xmlns:umbel="urn:umbel:engine">
          <ShortName>An Engine</ShortName>{body}
        </OpenSearchDescription>"#
    )
}

fn described(body: &str) -> Result<Engine, DescriptionError> {
    Engine::describe(document(body).as_bytes(), None, None)
}

fn url(media: &str, template: &str) -> String {
    format!(r#"<Url type="{media}" template="{}"/>"#, template.replace('&', "&amp;"))
}

fn engine(media: &str, results_element: &str) -> Engine {
    let url = url(media, "http://engine.example/search?q={searchTerms}&page={startPage?}");
    described(&(url + results_element)).unwrap()
}

fn request_url(template: &str, request: &SearchRequest) -> String {
    described(&url("application/rss+xml", template)).unwrap().http_request(request).unwrap().url.into()
}

fn answer(engine: &Engine, status: u16, body: &str) -> SearchAnswer {
    let url = Url::parse("http://engine.example/search?q=x").unwrap();
    engine.read(&request("x", 1, None), &Response { url: &url, status, body: body.as_bytes() })
}

fn results(engine: &Engine, body: &str) -> (Vec<(String, String, String)>, Option<u64>, bool) {
    match answer(engine, 200, body) {
        SearchAnswer::Results { results, total, more } => {
            let results = results.into_iter().map(|result| (result.title, result.url.into(), result.snippet));
            (results.collect(), total, more)
        }
        SearchAnswer::Refused(refusal) => panic!("{refusal}"),
    }
}

fn refusal(engine: &Engine, status: u16, body: &str) -> SearchRefusal {
    match answer(engine, status, body) {
        SearchAnswer::Refused(refusal) => refusal,
        SearchAnswer::Results { results, .. } => panic!("{} results", results.len()),
    }
}

fn row(title: &str, link: &str, snippet: &str) -> (String, String, String) {
    (title.to_owned(), link.to_owned(), snippet.to_owned())
}

#[test]
fn a_request_contains_only_terms_page_and_language_of_the_client() {
    let request = request("a&b=c #d/é", 3, Some("de-AT"));
    assert_eq!(
        request_url(
            "https://engine.example/s?q={searchTerms}&n={count}&i={startIndex}&p={startPage}&l={language?}",
            &request
        ),
        "https://engine.example/s?q=a%26b%3Dc%20%23d%2F%C3%A9&n=10&i=21&p=3&l=de-AT"
    );
    assert_eq!(
        request_url("https://engine.example/{searchTerms}/x?e={inputEncoding}&v=1", &request),
        "https://engine.example/a%26b%3Dc%20%23d%2F%C3%A9/x?e=UTF-8&v=1"
    );
}

#[test]
fn optional_parameters_without_a_value_are_omitted() {
    let template = "https://engine.example/?q={searchTerms}&l={language?}&a={some:thing?}&b=1&c={other?}x";
    assert_eq!(request_url(template, &request("x", 1, None)), "https://engine.example/?q=x&b=1");
    assert_eq!(
        request_url("https://engine.example/{language?}/?q={searchTerms}", &request("x", 1, None)),
        "https://engine.example//?q=x"
    );
}

#[test]
fn terms_in_any_script_are_sent_unchanged() {
    for terms in ["所有権", "ما هي الملكية", "🦀 + %41 & \"quoted\""] {
        let url =
            Url::parse(&request_url("https://engine.example/?q={searchTerms}", &request(terms, 1, None))).unwrap();
        assert_eq!(url.query_pairs().next().unwrap().1, terms);
    }
}

#[test]
fn terms_change_no_other_part_of_the_url() {
    let body = url("application/rss+xml", "https://engine.example/a/{searchTerms}?b=1");
    let engine = described(&body).unwrap();
    for terms in [".", "..", "..."] {
        assert!(engine.http_request(&request(terms, 1, None)).is_none(), "{terms}");
    }
    for terms in ["../../admin", "%2e%2e", "@evil.example", "?c=2", "\\..\\x", "//evil.example/"] {
        let url = engine.http_request(&request(terms, 1, None)).unwrap().url;
        assert_eq!(url.host_str(), Some("engine.example"), "{terms}");
        assert_eq!(url.path_segments().unwrap().count(), 2, "{terms}: {url}");
        assert_eq!(url.query(), Some("b=1"), "{terms}");
    }
}

#[test]
fn a_language_selects_only_listed_hosts() {
    let template = url("application/rss+xml", "https://{language}.engine.example/?q={searchTerms}");
    let engine = described(&(template.clone() + "<Language>en</Language><Language>pt-BR</Language>")).unwrap();
    let host = |language| engine.http_request(&request("x", 1, language)).unwrap().url.host_str().unwrap().to_owned();
    assert_eq!(host(None), "en.engine.example");
    assert_eq!(host(Some("PT-br")), "pt-br.engine.example");
    assert_eq!(host(Some("pt")), "pt-br.engine.example");
    assert_eq!(host(Some("en-GB")), "en.engine.example");
    assert_eq!(host(Some("evil")), "en.engine.example");
    assert!(matches!(described(&template), Err(DescriptionError::Template(TemplateError::Host(_)))));
    let any = template + "<Language>*</Language>";
    assert!(matches!(described(&any), Err(DescriptionError::Template(TemplateError::Host(_)))));
}

#[test]
fn an_invalid_template_is_refused_with_the_reason() {
    let failed = |template: &str| match described(&url("application/rss+xml", template)) {
        Err(DescriptionError::Template(error)) => error,
        other => panic!("{template}: {other:?}"),
    };
    assert!(matches!(failed("https://{searchTerms}/"), TemplateError::Host(_)));
    assert!(matches!(failed("https://engine.example{searchTerms}/?q"), TemplateError::Host(_)));
    assert!(matches!(failed("https://user@engine.example/?q={searchTerms}"), TemplateError::Url(_)));
    assert!(matches!(failed("ftp://engine.example/?q={searchTerms}"), TemplateError::Url(_)));
    assert!(matches!(failed("/search?q={searchTerms}"), TemplateError::Relative(_)));
    assert!(matches!(failed("search?q={searchTerms}"), TemplateError::Relative(_)));
    assert!(matches!(failed("https://engine.example/?q={searchTerms"), TemplateError::Brace(_)));
    assert!(matches!(failed("https://engine.example/?q={searchTerms}}"), TemplateError::Brace(_)));
    assert!(matches!(failed("https://engine.example/?q=x"), TemplateError::NoTerms(_)));
    assert_eq!(
        failed("https://engine.example/?q={searchTerms}&k={apiKey}").to_string(),
        "the template needs the unknown parameter \"apiKey\""
    );
}

#[test]
fn an_invalid_description_is_refused_with_the_reason() {
    let failed = |document: &str| Engine::describe(document.as_bytes(), None, None).unwrap_err();
    assert_eq!(failed(""), DescriptionError::Xml(XmlError::Malformed));
    assert_eq!(failed("<a>"), DescriptionError::Xml(XmlError::Malformed));
    assert_eq!(failed("<a/><b/>"), DescriptionError::Xml(XmlError::Malformed));
    assert_eq!(failed("<html/>"), DescriptionError::Root);
    assert_eq!(failed(&document("")), DescriptionError::NoUrl);
    assert_eq!(
        failed(&document(&url("text/html", "https://engine.example/?q={searchTerms}"))),
        DescriptionError::NoUrl
    );
    assert_eq!(failed(&" ".repeat(MAX_DESCRIPTION_LEN + 1)), DescriptionError::TooLong);
    let html = url("text/html", "https://engine.example/?q={searchTerms}");
    let with = |results: &str| failed(&document(&(html.clone() + results)));
    assert_eq!(with(r#"<umbel:results type="text/html" select="p" title="b"/>"#), DescriptionError::Attribute("link"));
    assert_eq!(
        with(r#"<umbel:results type="text/html" select="p[" title="b" link="a"/>"#),
        DescriptionError::Selector("p[".to_owned())
    );
    let nameless =
        document(&url("application/rss+xml", "https://engine.example/?q={searchTerms}")).replace("An Engine", "検索");
    assert_eq!(failed(&nameless), DescriptionError::Name);
    assert_eq!(Engine::describe(nameless.as_bytes(), None, Some(name("mine"))).unwrap().name(), &name("mine"));
}

#[test]
fn a_description_for_a_page_excludes_html() {
    let for_page = |body: &str| Engine::describe_for_page(document(body).as_bytes(), None);
    let html = url("text/html", "https://engine.example/html?q={searchTerms}")
        + r#"<umbel:results type="text/html" select="p" title="b" link="a"/>"#;
    assert_eq!(for_page(&html).unwrap_err(), DescriptionError::OnlyHtml);
    let both = html + &url("application/rss+xml", "https://engine.example/rss?q={searchTerms}");
    let http_request = for_page(&both).unwrap().http_request(&request("x", 1, None)).unwrap();
    assert_eq!(http_request.url.path(), "/rss");
    // Without any answer format, the error is the same as outside a page.
    assert_eq!(for_page("").unwrap_err(), DescriptionError::NoUrl);
    let relative = url("application/rss+xml", "/rss?q={searchTerms}");
    assert!(matches!(for_page(&relative), Err(DescriptionError::Template(TemplateError::Relative(_)))));
}

#[test]
fn the_description_determines_the_origins_of_an_engine() {
    let origins = |body: &str| described(body).unwrap().origins();
    let one = url("application/rss+xml", "http://engine.example:8080/?q={searchTerms}&l={language?}");
    assert_eq!(origins(&(one + "<Language>en</Language><Language>de</Language>")), ["http://engine.example:8080"]);
    let many = url("application/rss+xml", "https://{language}.engine.example/?q={searchTerms}");
    let many = many + "<Language>en</Language><Language>de</Language>";
    assert_eq!(origins(&many), ["https://en.engine.example", "https://de.engine.example"]);
}

#[test]
fn custom_entities_and_deep_documents_are_refused() {
    let failed = |document: &str| Engine::describe(document.as_bytes(), None, None).unwrap_err();
    let expanding = r#"<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>"#;
    assert_eq!(failed(expanding), DescriptionError::Xml(XmlError::Entities));
    let external = r#"<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>"#;
    assert_eq!(failed(external), DescriptionError::Xml(XmlError::Entities));
    assert_eq!(failed(&document("<a>&other;</a>")), DescriptionError::Xml(XmlError::Entities));
    let deep = |depth| document(&format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth)));
    assert_eq!(failed(&deep(31)), DescriptionError::NoUrl);
    assert_eq!(failed(&deep(32)), DescriptionError::Xml(XmlError::TooDeep));
    let wide: String = (0..33).map(|number| format!(" a{number}='x'")).collect();
    assert_eq!(failed(&document(&format!("<a{wide}/>"))), DescriptionError::Xml(XmlError::TooDeep));
    assert_eq!(failed(r#"<?xml version="1.0" encoding="UTF-16"?><a/>"#), DescriptionError::Xml(XmlError::Encoding));
    assert_eq!(Engine::describe(b"<a>\xff</a>", None, None).unwrap_err(), DescriptionError::Xml(XmlError::Encoding));
}

#[test]
fn the_preferred_format_is_used() {
    let body = [
        url("text/html", "https://engine.example/html?q={searchTerms}"),
        r#"<Url type="application/rss+xml" method="post" template="https://engine.example/post?q={searchTerms}"/>"#
            .into(),
        r#"<Url type="application/rss+xml" rel="self" template="https://engine.example/self?q={searchTerms}"/>"#.into(),
        url("application/x-suggestions+json", "https://engine.example/suggest?q={searchTerms}"),
        url("application/atom+xml;profile=x", "https://engine.example/atom?q={searchTerms}"),
        url("application/json", "https://engine.example/json?q={searchTerms}"),
    ]
    .concat();
    let path = |engine: &Engine| engine.http_request(&request("x", 1, None)).unwrap().url.path().to_owned();
    assert_eq!(path(&described(&body).unwrap()), "/atom");
    let mapped = body + r#"<umbel:results type="application/json" select="/a" title="/b" link="/c"/>"#;
    assert_eq!(path(&described(&mapped).unwrap()), "/json");
}

#[test]
fn a_template_may_be_relative_to_the_url_of_the_description() {
    let origin = Url::parse("http://127.0.0.1:8080/search/searchdescription.xml").unwrap();
    let kiwix = include_bytes!("tests/kiwix-description.xml");
    let engine = Engine::describe(kiwix, Some(&origin), None).unwrap();
    assert_eq!(engine.name(), &name("fulltext-articles-search"));
    let url = engine.http_request(&request("own", 2, None)).unwrap().url;
    assert_eq!(url.as_str(), "http://127.0.0.1:8080/search?format=xml&pattern=own&pageLength=10&start=10");
    let other_host = document(&self::url("application/rss+xml", "//evil.example/?q={searchTerms}"));
    assert!(Engine::describe(other_host.as_bytes(), Some(&origin), None).is_err());
}

#[test]
fn the_shipped_descriptions_are_valid() {
    let request = request("rust ownership", 2, Some("ja"));
    for (file, expected) in [
        (
            "wikipedia",
            "https://ja.wikipedia.org/w/api.php?action=query&list=search&format=json&formatversion=2\
             &origin=*&srsearch=rust%20ownership&srlimit=10&sroffset=10",
        ),
        ("searxng", "https://searx.example.org/search?q=rust%20ownership&format=json&pageno=2&language=ja"),
        ("kiwix", "http://127.0.0.1:8080/search?format=xml&pattern=rust%20ownership&pageLength=10&start=11"),
    ] {
        let path = format!("{}/deploy/engines/{file}.xml", env!("CARGO_MANIFEST_DIR"));
        let engine = Engine::describe(&fs::read(path).unwrap(), None, None).unwrap();
        assert_eq!(engine.name(), &name(file));
        assert_eq!(engine.http_request(&request).unwrap().url.as_str(), expected);
    }
}

#[test]
fn rss_of_kiwix_is_parsed() {
    let (results, total, more) = results(&engine("application/rss+xml", ""), include_str!("tests/kiwix.xml"));
    assert_eq!(total, Some(11));
    assert!(more);
    assert_eq!(
        results[0],
        row(
            "Rc<T>, the Reference Counted Smart Pointer - The Rust Programming Language",
            "http://engine.example/rustbook/ch15-04-rc.html",
            "...to count the “smart pointer” & its clones: Rc<T> is the reference counted smart pointer...",
        )
    );
    assert_eq!(results.len(), 2, "an item without a URL is omitted");
    assert_eq!(results[1].0, "Smart Pointers");
}

#[test]
fn atom_is_parsed() {
    let body = r#"<feed xmlns="http://www.w3.org/2005/Atom" xmlns:os="http://a9.com/-/spec/opensearch/1.1/">
        <title>Search</title><os:totalResults>7</os:totalResults>
        <entry><title type="html">&lt;b&gt;One&lt;/b&gt; &amp;amp; two</title>
          <link rel="self" href="http://engine.example/self"/><link href="/a?utm_source=feed"/>
          <summary>A summary</summary></entry>
        <entry><title>Three</title><link rel="alternate" href="https://example.org/"/>
          <content type="xhtml"><div xmlns="http://www.w3.org/1999/xhtml">Some <i>content</i></div></content></entry>
      </feed>"#;
    let (results, total, more) = results(&engine("application/atom+xml", ""), body);
    let expected = [
        row("One & two", "http://engine.example/a", "A summary"),
        row("Three", "https://example.org/", "Some content"),
    ];
    assert_eq!((results, total, more), (expected.to_vec(), Some(7), false));
}

#[test]
fn json_of_searxng_is_parsed() {
    let body = r#"{"query": "x", "number_of_results": 0, "results": [
        {"url": "https://example.org/a?fbclid=1", "title": "A & <b>b</b>", "content": null, "score": 1.0},
        {"url": "javascript:alert(1)", "title": "bad", "content": ""},
        {"title": "no link"}, 7,
        {"url": "https://example.org/c", "title": "", "content": "text\nmore"}]}"#;
    let (found, total, more) = results(&engine("application/json", ""), body);
    let expected =
        [row("A & b", "https://example.org/a", ""), row("example.org", "https://example.org/c", "text more")];
    assert_eq!((found, total, more), (expected.to_vec(), None, true));
    let (_, total, more) = results(
        &engine("application/json", ""),
        r#"{"number_of_results": 8.0, "results": [{"url": "http://a/", "title": "a"}]}"#,
    );
    assert_eq!((total, more), (Some(8), false));
}

#[test]
fn json_is_parsed_by_the_mapping_of_the_description() {
    let mapping = r#"<umbel:results type="application/json" select="/query/search" total="/query/searchinfo/totalhits"
        title="/title" link="/wiki/{/title}?id={/pageid}" snippet="/snippet"/>"#;
    let body = r#"{"query": {"searchinfo": {"totalhits": 31}, "search": [
        {"title": "Größe/Æ", "pageid": 5, "snippet": "a <span class=\"searchmatch\">match</span> &quot;x&quot;"},
        {"title": "no id", "snippet": "x"}, {"title": ["x"], "pageid": 1}]}}"#;
    let (results, total, more) = results(&engine("application/json", mapping), body);
    let expected = [row("Größe/Æ", "http://engine.example/wiki/Gr%C3%B6%C3%9Fe%2F%C3%86?id=5", "a match \"x\"")];
    assert_eq!((results, total, more), (expected.to_vec(), Some(31), true));
}

#[test]
fn values_in_titles_and_snippets_are_not_percent_encoded() {
    let mapping = r#"<umbel:results type="application/json" select="/hits" title="{/title} ({/year})" link="/{/title}"
        snippet="by {/author}"/>"#;
    let body = r#"{"hits": [{"title": "Größe & Maß", "year": 1999, "author": "Ä. B"}]}"#;
    let (results, ..) = results(&engine("application/json", mapping), body);
    let link = "http://engine.example/Gr%C3%B6%C3%9Fe%20%26%20Ma%C3%9F";
    assert_eq!(results, [row("Größe & Maß (1999)", link, "by Ä. B")]);
}

#[test]
fn suggestions_with_urls_are_results() {
    let body = r#"["x", ["A", "B", "C"], ["first"], ["https://example.org/a", 7, "https://example.org/c"]]"#;
    let (results, ..) = results(&engine("application/x-suggestions+json", ""), body);
    assert_eq!(results, [row("A", "https://example.org/a", "first"), row("C", "https://example.org/c", "")]);
}

#[test]
fn html_is_parsed_by_selectors() {
    let mapping = r#"<umbel:results type="text/html" select="div.result" title="h2" link="h2 a" snippet=".text"/>"#;
    let body = r#"<!DOCTYPE html><title>x</title><div class="ad"><h2><a href="http://ad.example/">Ad</a></h2></div>
        <div class=result><h2><a href="//duckduckgo.com/l/?uddg=https%3A%2F%2Fexample.org%2F&rut=1">O<b>n</b>e</a></h2>
          <p class=text>Some <em>text</em> &lt;here&gt;<script>evil()</script></p></div>
        <div class=result><h2>No link</h2></div>
        <div class=result><h2><a href=/two>Two"#;
    let (results, total, more) = results(&engine("text/html", mapping), body);
    let expected =
        [row("One", "https://example.org/", "Some text <here>"), row("Two", "http://engine.example/two", "")];
    assert_eq!((results, total, more), (expected.to_vec(), None, true));
}

#[test]
fn malformed_answers_are_refused() {
    for media in ["application/rss+xml", "application/json", "application/x-suggestions+json"] {
        let engine = engine(media, "");
        for body in ["", "<", "{", "[]", "{}", "<html><p>hello", "null", "\u{0}", "<a/>", "<rss version='2.0'>"] {
            assert_eq!(refusal(&engine, 200, body), SearchRefusal::EngineMalformed, "{media} {body}");
        }
    }
    let rss = engine("application/rss+xml", "");
    let expanding = r#"<!DOCTYPE rss [<!ENTITY a "a">]><rss version="2.0"><channel><title>&a;</title></channel></rss>"#;
    assert_eq!(refusal(&rss, 200, expanding), SearchRefusal::EngineMalformed);
    let deep = format!("<rss version='2.0'>{}{}</rss>", "<channel>".repeat(100), "</channel>".repeat(100));
    assert_eq!(refusal(&rss, 200, &deep), SearchRefusal::EngineMalformed);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(refusal(&engine("application/json", ""), 200, &deep), SearchRefusal::EngineMalformed);
}

#[test]
fn html_with_a_growing_tree_is_refused() {
    let mapping = r#"<umbel:results type="text/html" select="p" title="b" link="a"/>"#;
    let engine = engine("text/html", mapping);
    // The parser repeats all open formatting elements in each paragraph.
    let formatting: String = (0..5000).map(|number| format!("<b id={number}>")).collect();
    for body in ["<div>".repeat(100_000), formatting + &"<p>x".repeat(50_000), "<br>".repeat(200_000)] {
        assert_eq!(refusal(&engine, 200, &body), SearchRefusal::EngineMalformed);
    }
}

#[test]
fn html_nested_before_a_comment_is_refused() {
    // The last node, a comment after the body, is not the deepest one.
    let hidden = "<dl><dl><dl><dl><dl><dl><dl><dl><dl><dl><i></i></body><!--abc-->".repeat(4000);
    assert_eq!(hidden.len() % 64, 0, "a piece ends with a comment");
    assert!(bounded_html(&hidden, 50_000).is_none());
    // Such comments without nesting are accepted.
    assert!(bounded_html(&"<p>a</p></body><!-- b -->".repeat(1000), 50_000).is_some());
}

#[test]
fn html_with_too_many_attributes_is_refused() {
    let attributes = |count: usize| (0..count).map(|number| format!(" a{number:x}")).collect::<String>();
    // The parser compares each attribute with all previous ones.
    assert!(bounded_html(&format!("<b{}>", attributes(80_000)), 50_000).is_none());
    // The parser repeats the attributes in each paragraph.
    let repeating = format!("<p><b{}>x</p>", attributes(3000)) + &"<p>x</p>".repeat(15_000);
    assert!(bounded_html(&repeating, 50_000).is_none());
    // The parser adds the attributes of each further tag to the first element.
    let html: String =
        (0..60).map(|tag| format!("<html{}>", attributes(2000).replace('a', &format!("a{tag}x")))).collect();
    let html = bounded_html(&html, 50_000).unwrap();
    assert!(html.root_element().value().attrs().count() <= 64);
}

#[test]
fn ordinary_html_is_unchanged() {
    let html = bounded_html(
        r#"<html lang="en"><body class="x"><!-- c --><p id="1">a&amp;b<img src="data:image/png;base64,//+//"><svg><a/></svg></html>"#,
        100,
    );
    let html = html.unwrap();
    assert_eq!(html.root_element().attr("lang"), Some("en"));
    assert_eq!(
        html.select(&scraper::Selector::parse("body.x p").unwrap()).next().unwrap().text().collect::<String>(),
        "a&b"
    );
}

#[test]
fn an_answer_without_results_is_empty() {
    let rss = r#"<rss version="2.0" xmlns:o="http://a9.com/-/spec/opensearch/1.1/"><channel><title>x</title>
        <o:totalResults>0</o:totalResults></channel></rss>"#;
    assert_eq!(results(&engine("application/rss+xml", ""), rss), (vec![], Some(0), false));
    assert_eq!(results(&engine("application/json", ""), r#"{"results": []}"#), (vec![], None, false));
}

#[test]
fn the_number_of_results_is_capped() {
    let many = format!(r#"{{"results": [{}0]}}"#, r#"{"url": "http://a/", "title": "a"},"#.repeat(100));
    assert_eq!(results(&engine("application/json", ""), &many).0.len(), 50);
}

#[test]
fn a_block_by_the_engine_is_reported() {
    let (rss, json) = (engine("application/rss+xml", ""), engine("application/json", ""));
    let captcha = "<html><form><div class=\"g-recaptcha\"></div></form>";
    let blocked = SearchRefusal::EngineBlocked;
    assert_eq!(refusal(&rss, 403, "no"), blocked(Block::Forbidden));
    assert_eq!(refusal(&rss, 403, captcha), blocked(Block::Captcha));
    assert_eq!(refusal(&rss, 429, captcha), blocked(Block::TooManyRequests));
    assert_eq!(refusal(&rss, 503, captcha), blocked(Block::Captcha));
    assert_eq!(refusal(&json, 200, captcha), blocked(Block::Captcha));
    let mapping = r#"<umbel:results type="text/html" select="p" title="a" link="a"/>"#;
    assert_eq!(refusal(&engine("text/html", mapping), 200, captcha), blocked(Block::Captcha));
    for status in [400, 404, 500, 502, 503, 302] {
        assert_eq!(refusal(&rss, status, "<p>broken"), SearchRefusal::EngineFailed, "{status}");
    }
    // Results about captchas don't indicate a block.
    let about = r#"{"results": [{"url": "http://a/", "title": "What is a <b>captcha</b>?"}]}"#;
    assert_eq!(results(&json, about).0.len(), 1);
}

#[test]
fn an_engine_without_pages_has_only_the_first_page() {
    let single = described(&url("application/rss+xml", "https://engine.example/?q={searchTerms}")).unwrap();
    assert!(single.lacks_page(2) && !single.lacks_page(1));
    assert!(!engine("application/rss+xml", "").lacks_page(2));
}
