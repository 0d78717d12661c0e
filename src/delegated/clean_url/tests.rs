use super::*;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn cleaned(text: &str) -> Option<String> {
    clean(text, None).map(|url| url.as_str().to_owned())
}

#[test]
fn only_http_urls_with_a_host_remain() {
    for text in [
        "",
        "   ",
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " data:text/html,<script>",
        "file:///etc/passwd",
        "ftp://example.org/",
        "mailto:someone@example.org",
        "/relative",
        "//example.org/without-scheme",
        "http://",
        "https:///",
        "http://[::1",
        "http://exa mple.org/",
        "blob:https://example.org/1",
        "view-source:https://example.org/",
    ] {
        assert_eq!(cleaned(text), None, "{text}");
    }
    assert_eq!(cleaned(" HTTPS://Example.ORG:443/a b?c#d ").unwrap(), "https://example.org/a%20b?c#d");
    assert_eq!(cleaned("http://xn--r8jz45g.example/").unwrap(), "http://xn--r8jz45g.example/");
}

#[test]
fn a_relative_url_is_resolved_against_its_base() {
    let base = Url::parse("http://127.0.0.1:8080/search?pattern=x").unwrap();
    let clean = |text| clean(text, Some(&base)).map(|url| url.as_str().to_owned());
    assert_eq!(clean("/book/a.html").unwrap(), "http://127.0.0.1:8080/book/a.html");
    assert_eq!(clean("//example.org/a").unwrap(), "http://example.org/a");
    assert_eq!(clean("https://example.org/").unwrap(), "https://example.org/");
    assert_eq!(clean("javascript:alert(1)"), None);
}

#[test]
fn user_names_and_passwords_are_dropped() {
    assert_eq!(cleaned("https://bank.example@evil.example/").unwrap(), "https://evil.example/");
    assert_eq!(cleaned("https://user:secret@example.org/").unwrap(), "https://example.org/");
}

#[test]
fn tracking_parameters_are_dropped_and_others_are_unchanged() {
    let cases = [
        (
            "https://example.org/?utm_source=x&a=1&UTM_medium=y&b=%C3%A4+ö&fbclid=z",
            "https://example.org/?a=1&b=%C3%A4+%C3%B6",
        ),
        ("https://example.org/?gclid=1", "https://example.org/"),
        ("https://example.org/?ut%6d_source=1&q", "https://example.org/?q"),
        ("https://example.org/?a&&b=", "https://example.org/?a&b="),
        ("https://example.org/?id=gclid", "https://example.org/?id=gclid"),
        ("https://example.org/?ei=1&ved=2", "https://example.org/?ei=1&ved=2"),
        ("https://www.google.co.uk/search?q=x&ei=1&ved=2", "https://www.google.co.uk/search?q=x"),
        ("https://www.youtube.com/watch?v=1&si=2", "https://www.youtube.com/watch?v=1"),
        ("https://example.org/#section", "https://example.org/#section"),
        ("https://example.org/#utm_source=x", "https://example.org/"),
        ("https://example.org/a#:~:text=words", "https://example.org/a"),
        ("https://example.org/a#b:~:text=words", "https://example.org/a#b"),
    ];
    for (url, expected) in cases {
        assert_eq!(cleaned(url).as_deref(), Some(expected), "{url}");
    }
}

#[test]
fn redirectors_are_removed() {
    let cases = [
        ("https://www.google.com/url?sa=t&q=https%3A%2F%2Fexample.org%2Fa%3Fb%3D1&usg=x", "https://example.org/a?b=1"),
        ("https://www.google.de/url?url=http://example.org/", "http://example.org/"),
        ("https://www.google.com/amp/s/example.org/story", "https://example.org/story"),
        ("//duckduckgo.com/l/?uddg=https%3A%2F%2Fexample.org%2F%3Futm_source%3Dx&rut=1", "https://example.org/"),
        ("https://www.bing.com/ck/a?!&&p=1&u=a1aHR0cHM6Ly9leGFtcGxlLm9yZy8_YQ&ntb=1", "https://example.org/?a"),
        (
            "https://r.search.yahoo.com/_ylt=x/RV=2/RE=1/RO=10/RU=https%3a%2f%2fexample.org%2fa%2bb/RK=2/RS=y-",
            "https://example.org/a+b",
        ),
        ("https://l.facebook.com/l.php?u=https%3A%2F%2Fexample.org%2F&h=x", "https://example.org/"),
        ("https://www.youtube.com/redirect?event=x&q=https%3A%2F%2Fexample.org%2F", "https://example.org/"),
        ("https://href.li/?https://example.org/", "https://example.org/"),
        (
            "https://www.google.com/url?q=https%3A%2F%2Fduckduckgo.com%2Fl%2F%3Fuddg%3Dhttps%253A%252F%252Fexample.org%252F",
            "https://example.org/",
        ),
    ];
    let base = Url::parse("https://engine.example/").unwrap();
    for (url, expected) in cases {
        assert_eq!(clean(url, Some(&base)).map(|url| url.as_str().to_owned()).as_deref(), Some(expected), "{url}");
    }
}

#[test]
fn only_http_targets_of_known_redirectors_are_unwrapped() {
    for url in [
        "https://www.google.com/url?q=javascript:alert(1)",
        "https://www.google.com/url?q=/search",
        "https://www.bing.com/ck/a?u=a1!!!",
        "https://www.bing.com/ck/a?u=a1_w",
    ] {
        assert_eq!(cleaned(url).as_deref(), Some(url), "the URL is unchanged");
    }
    assert_eq!(
        cleaned("https://google.evil.example/url?q=https://example.org/").unwrap(),
        "https://google.evil.example/url?q=https://example.org/"
    );
    assert_eq!(
        cleaned("https://notgoogle.com/url?q=https://a.example/").unwrap(),
        "https://notgoogle.com/url?q=https://a.example/"
    );
}

#[test]
fn a_url_with_too_many_nested_redirectors_is_removed() {
    let mut url = "https://example.org/".to_owned();
    for _ in 0..=MAX_NESTING {
        url = format!("https://href.li/?{url}");
    }
    assert_eq!(cleaned(&url), None);
}

#[test]
fn a_url_that_is_too_long_is_removed() {
    let long = |length: usize| format!("https://example.org/{}", "a".repeat(length));
    assert!(cleaned(&long(MAX_URL_LEN - 20)).is_some());
    assert_eq!(cleaned(&long(MAX_URL_LEN - 19)), None);
    // Percent-encoding lengthens the URL beyond the maximum.
    assert_eq!(cleaned(&format!("https://example.org/{}", "ä".repeat(500))), None);
}

#[test]
fn cleaning_is_idempotent() {
    for url in ["https://example.org/?a=%zz&b=+#c=d", "https://example.org/?a?b", "http://[2001:db8::1]/%41"] {
        let once = cleaned(url).unwrap();
        assert_eq!(cleaned(&once).unwrap(), once);
    }
}
