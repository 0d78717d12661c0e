//! The HTML of the reader view: a cleaned page, or the reason of a failure.

use axum::{http::StatusCode, response::Response};
use maud::{PreEscaped, html};
use url::Url;

use crate::{
    page::{
        layout::{PageKind, address, brand, foot, page},
        results::{capital, connect_failure},
    },
    requests::http::RequestError,
};

use super::{CleanedContent, CleanedPage, ReadError};

/// A cleaned page below a bar with its host.
pub(in crate::page) fn reader_view(cleaned: &CleanedPage) -> Response {
    let url = cleaned.url.as_str();
    let host = cleaned.url.host_str().unwrap_or_default();
    let title = if cleaned.title.is_empty() { host } else { &cleaned.title };
    let body = html! {
        header.bar {
            div.row {
                (brand())
                a href=(address("/leave", &[("url", url)])) { "open directly in this browser…" }
            }
            p { "Reader view of " b { (host) } ", fetched through the overlay: text only. " b { (host) } " sees the address of an exit instead of yours." }
        }
        main.foreign {
            @if !cleaned.verified {
                p.warn {
                    "The page was not encrypted by " b { (host) } ". The exit could read and modify it."
                }
            }
            h1.title dir="auto" { (title) }
            p.where { (url) }
            @match &cleaned.content {
                CleanedContent::Html(html) => article dir="auto" { (PreEscaped(html)) },
                CleanedContent::Plain(text) => pre.plain dir="auto" { (text) },
            }
        }
        (foot())
    };
    page(PageKind::Foreign, StatusCode::OK, &format!("{title} · Umbel reader"), &body)
}

/// A page with the reason of a failed read, and the alternatives.
pub(in crate::page) fn read_failure(url: &Url, error: &ReadError) -> Response {
    let (status, title, text) = match error {
        ReadError::Request(RequestError::Connect(error)) => connect_failure(*error),
        ReadError::TooSlow => (StatusCode::GATEWAY_TIMEOUT, "The page did not arrive in time", sentence(error)),
        ReadError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "The reader is busy", sentence(error)),
        error => (StatusCode::BAD_GATEWAY, "This page can't be shown", sentence(error)),
    };
    let body = html! {
        header.top { (brand()) }
        main.words {
            h1 { (title) }
            p.target { (url) }
            p { (text) }
            div.choices {
                a.button href=(address("/read", &[("url", url.as_str())])) { "Try again" }
                a.button.quiet href=(address("/leave", &[("url", url.as_str())])) { "Open it in this browser…" }
            }
            @if let ReadError::ContentType(_) | ReadError::TooLarge = error {
                p { "To save it as a file through the overlay: " code { "umbel fetch --output FILE URL" } }
            }
        }
        (foot())
    };
    page(PageKind::Foreign, status, title, &body)
}

fn sentence(error: &ReadError) -> String {
    format!("{}.", capital(&error.to_string()))
}
