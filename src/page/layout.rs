//! The common parts of all pages: head, search form, footer, and the content security policy of each kind of page.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use maud::{DOCTYPE, Markup, html};

use crate::delegated::{EngineName, MAX_TERMS_LEN};

/// The languages in the form's list. The URL may contain any other language tag.
const LANGUAGES: [(&str, &str); 16] = [
    ("ar", "العربية"),
    ("cs", "Čeština"),
    ("de", "Deutsch"),
    ("en", "English"),
    ("es", "Español"),
    ("fr", "Français"),
    ("hi", "हिन्दी"),
    ("it", "Italiano"),
    ("ja", "日本語"),
    ("ko", "한국어"),
    ("nl", "Nederlands"),
    ("pl", "Polski"),
    ("pt", "Português"),
    ("ru", "Русский"),
    ("tr", "Türkçe"),
    ("zh", "中文"),
];

/// The kind of a page, which selects its content security policy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PageKind {
    /// A page with Umbel's content only.
    Own,
    /// A page with cleaned content of another site. The policy forbids scripts, in case the cleaning failed.
    Foreign,
    /// A page with Umbel's content and the image of the proxy check.
    Leave,
}

impl PageKind {
    const fn policy(self) -> &'static str {
        match self {
            Self::Own => {
                "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; form-action 'self'; \
                 base-uri 'none'; frame-ancestors 'none'"
            }
            Self::Foreign => {
                "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; \
                 frame-ancestors 'none'; sandbox allow-same-origin allow-forms"
            }
            // A policy can't contain an IPv6 address, hence `http:`. The only foreign content of this page is text.
            Self::Leave => {
                "default-src 'none'; style-src 'self'; img-src 'self' http:; form-action 'self'; base-uri 'none'; \
                 frame-ancestors 'none'"
            }
        }
    }
}

/// The content of the search form.
#[derive(Clone, Copy)]
pub(super) struct Form<'a> {
    pub(super) terms: &'a str,
    pub(super) engine: Option<&'a EngineName>,
    pub(super) language: Option<&'a str>,
    /// The engines that the network's exits offer.
    pub(super) engines: &'a [EngineName],
    /// Whether the search box has the keyboard focus on load.
    pub(super) focus: bool,
}

impl Form<'_> {
    pub(super) fn markup(self) -> Markup {
        let known = |language: &str| LANGUAGES.iter().any(|(tag, _)| *tag == language);
        html! {
            form.ask action="/search" method="get" role="search" {
                div.box {
                    input #q type="search" name="q" value=(self.terms) placeholder="Search terms"
                        aria-label="Search" maxlength=(MAX_TERMS_LEN) required autofocus[self.focus] autocomplete="off"
                        autocapitalize="none" spellcheck="false" enterkeyhint="search";
                    button type="submit" { "Search" }
                }
                div.options {
                    @if self.engines.len() > 1 {
                        label { "Engine "
                            select name="engine" {
                                @for engine in self.engines {
                                    option value=(engine) selected[self.engine == Some(engine)] { (engine) }
                                }
                            }
                        }
                    } @else if let Some(engine) = self.engine {
                        input type="hidden" name="engine" value=(engine);
                    }
                    label { "Language "
                        select name="language" {
                            option value="" { "any" }
                            @for (tag, name) in LANGUAGES {
                                option value=(tag) lang=(tag) selected[self.language == Some(tag)] { (name) }
                            }
                            @if let Some(other) = self.language.filter(|language| !known(language)) {
                                option value=(other) selected { (other) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The logo and name, which open the search form.
pub(super) fn brand() -> Markup {
    html! { a.brand href="/" { img src="/icon.svg" alt="" width="28" height="28"; span { "Umbel" } } }
}

/// A complete page.
pub(super) fn page(kind: PageKind, status: StatusCode, title: &str, body: &Markup) -> Response {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (title) }
                link rel="icon" href="/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/style.css";
                link rel="search" href="/opensearch.xml" type="application/opensearchdescription+xml" title="Umbel";
                @if kind == PageKind::Own { script src="/keys.js" defer {} }
            }
            body { (body) }
        }
    };
    let fields = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(kind.policy())),
    ];
    (status, fields, markup.into_string()).into_response()
}

/// A page with the title and text of a failure.
pub(super) fn failure_page(status: StatusCode, title: &str, text: &str, form: Option<Form<'_>>) -> Response {
    let body = html! {
        header.top { (brand()) @if let Some(form) = form { (form.markup()) } }
        main.words { h1 { (title) } p { (text) } }
        (foot())
    };
    page(PageKind::Own, status, title, &body)
}

/// The footer of all pages.
pub(super) fn foot() -> Markup {
    html! {
        footer {
            p { "This page is served by Umbel on your own computer and loads nothing from other sites." }
        }
    }
}

/// The URL `path?key=value&…` with percent-encoded pairs.
pub(super) fn address(path: &str, pairs: &[(&str, &str)]) -> String {
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    format!("{path}?{query}")
}
