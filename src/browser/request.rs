//! HTTP requests of a page, performed by an exit; the counterpart of `requests::http`.
//!
//! Each request has a separate circuit. The exit reads the complete request and response, so fields that identify the
//! user are removed. Specified in `proto/09-delegated.md` §6.

use core::time::Duration;

use super::{
    client::{ExchangeFailure, ExchangeParameters, ExchangePath, exchange},
    failure::{FailureKind, PageFailure},
    page::Page,
};
use crate::delegated::{
    Delegation,
    binary_http::BinaryHttpError,
    message::{HttpRequest, HttpRequestError, HttpResponse},
};

/// Time limit of the answer, from the time at which the circuit is ready.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer in bytes.
const MAX_ANSWER_LEN: usize = 32 << 20;

/// Sends a request that an exit performs. `fields` has the name and the value of each header field in turn.
pub(super) async fn request(
    page: &Page,
    method: &str,
    url: &str,
    fields: &[String],
    body: Vec<u8>,
) -> Result<(HttpResponse, ExchangePath), PageFailure> {
    let invalid = |error: HttpRequestError| PageFailure::new(FailureKind::BadInput, error.to_string());
    let pairs = fields.chunks_exact(2).filter_map(|pair| Some((pair.first()?.clone(), pair.get(1)?.clone())));
    let request = HttpRequest::new(method, url, pairs, body).map_err(invalid)?;
    let parameters = ExchangeParameters {
        delegation: Delegation::Http { host: request.host().to_owned() },
        excluded_exits: Vec::new(),
        isolation: page.isolation(),
        request: request.encode().map_err(invalid)?,
        max_len: MAX_ANSWER_LEN,
        timeout: ANSWER_TIMEOUT,
    };
    let exchanged = match exchange(&page.drive, parameters).await {
        Ok(exchanged) => exchanged,
        Err(failure) => return Err(to_failure(failure)),
    };
    let response = HttpResponse::decode(exchanged.answer).map_err(|error| {
        let message = match error {
            BinaryHttpError::TooLarge => "the answer's header or trailer fields are too large or too many",
            BinaryHttpError::Truncated | BinaryHttpError::Malformed(_) => "the answer is truncated or not HTTP",
        };
        PageFailure::new(FailureKind::Exit, message)
    })?;
    match response.refusal {
        Some(refusal) => Err(PageFailure::new(FailureKind::Refused, refusal.to_string())),
        None => Ok((response, exchanged.path)),
    }
}

fn to_failure(failure: ExchangeFailure) -> PageFailure {
    match failure {
        ExchangeFailure::NoCircuit(failure) => failure.into(),
        ExchangeFailure::Broken(_) => PageFailure::new(
            FailureKind::Exit,
            "the exit or the circuit failed before the end of the answer, or the answer is larger than a page accepts",
        ),
        ExchangeFailure::TimedOut(_) => PageFailure::new(FailureKind::Exit, "the whole answer did not arrive in time"),
        ExchangeFailure::Closed => PageFailure::closed(),
    }
}
