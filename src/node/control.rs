//! HTTP requests of the command line to the running client's API (`page::api`).

use core::time::Duration;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, time::timeout};

use crate::page::api::{API_FIELD, ApiFailure};

use super::Failure;

/// Default address of the running client's API.
pub(crate) const DEFAULT_ADDRESS: &str = "127.0.0.1:9352";

/// Time limit of an answer: for two tries at different exits, each with a circuit and the engine's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum bytes of an answer.
const MAX_ANSWER: usize = 8 << 20;

/// Sends a request for `path` to the client at `control`, with `body` as JSON if there is one.
///
/// # Errors
/// The client's error; or a failure if no client of this version answers at `control` in time.
pub(crate) async fn request<T: DeserializeOwned>(
    control: SocketAddr,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, Failure> {
    let timed_out = |_| {
        let limit = ANSWER_TIMEOUT.as_secs();
        Failure::failed(format!("the client at {control} did not answer within {limit} s; try again"))
    };
    let (status, answer) = timeout(ANSWER_TIMEOUT, exchange(control, path, body)).await.map_err(timed_out)??;
    if status.is_success() {
        return serde_json::from_slice(&answer).map_err(|_| not_a_client(control));
    }
    Err(failure(control, status, &answer))
}

/// The failure described by `status` and `answer` of the client at `control`.
pub(crate) fn failure(control: SocketAddr, status: StatusCode, answer: &[u8]) -> Failure {
    let Ok(ApiFailure { error }) = serde_json::from_slice(answer) else { return not_a_client(control) };
    match status {
        StatusCode::BAD_REQUEST => Failure::usage(error),
        StatusCode::SERVICE_UNAVAILABLE => Failure::Unreachable(error.into()),
        _ => Failure::failed(error),
    }
}

/// The failure if no client answers at `control`.
pub(crate) fn no_client(control: SocketAddr, error: std::io::Error) -> Failure {
    Failure::system(format!(
        "no client answers at {control}; start `umbel client`, or give its address with --control ADDRESS:PORT"
    ))(error)
}

async fn exchange(
    control: SocketAddr,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<(StatusCode, Bytes), Failure> {
    let socket = TcpStream::connect(control).await.map_err(|error| no_client(control, error))?;
    let invalid_answer = |_| not_a_client(control);
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(invalid_answer)?;
    let driving = tokio::spawn(connection);
    let method = if body.is_some() { "POST" } else { "GET" };
    let body = body.map(serde_json::to_vec).transpose().map_err(Failure::failed)?;
    let request =
        Request::builder().method(method).uri(path).header(header::HOST, control.to_string()).header(API_FIELD, "1");
    let request = request.body(Full::new(Bytes::from(body.unwrap_or_default()))).map_err(Failure::failed)?;
    let (head, body) = sender.send_request(request).await.map_err(invalid_answer)?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|_| not_a_client(control))?.to_bytes();
    driving.abort();
    Ok((head.status, body))
}

/// The failure if the answer of the program at `control` is invalid or incomplete.
pub(crate) fn not_a_client(control: SocketAddr) -> Failure {
    Failure::failed(format!(
        "invalid or incomplete answer from {control}; check that a client of version {} runs there",
        env!("CARGO_PKG_VERSION")
    ))
}
