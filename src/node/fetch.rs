//! `umbel fetch`: sends one HTTP request through the running client, and writes the body of the answer.
//!
//! An output file is created only when the body is complete. Standard output may be partial. The exit status reports a
//! failure in both cases.

mod output;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf};

use bytes::{Bytes, BytesMut};
use clap::{Args, ValueEnum};
use http_body_util::{BodyDataStream, BodyExt as _, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt as _},
    net::TcpStream,
    signal::{
        ctrl_c,
        unix::{SignalKind, signal},
    },
};
use tokio_util::io::StreamReader;
use url::Url;

use crate::{
    http_exchange::binary::{Content, Encoded, Pipe, Piped, read_response, request_head},
    page::api::{
        API_FIELD,
        request::{BY_EXIT, BY_STREAM, GATEWAY, KIND, VIA},
    },
};

use super::{Failure, control};
use output::Output;

/// Bytes of a piece of the request's body.
const PIECE: usize = 16 * 1024;
/// Largest error message of the client, in bytes.
const MAX_ERROR_LEN: usize = 64 * 1024;

/// The method of sending a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Via {
    /// An exit performs the request. The exit reads request and answer; the target sees only the exit's address
    Request,
    /// A stream to the target carries the request. With https, the exit reads only host and port
    Stream,
}

/// Options of `umbel fetch`.
#[derive(Args, Clone, Debug)]
pub(crate) struct FetchOptions {
    /// URL to fetch, http or https
    #[arg(value_name = "URL")]
    url: Url,
    /// Method [default: GET, or POST with --data]
    #[arg(short = 'X', long, value_name = "METHOD")]
    method: Option<Method>,
    /// Header field, such as "Accept: text/html"; may be repeated. With --via request, fields that identify the
    /// sender (Cookie, Referer, User-Agent and others) are removed
    #[arg(short = 'H', long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// Body to send: text, @FILE, or @- for standard input
    #[arg(short, long, value_name = "DATA")]
    data: Option<String>,
    /// Way of sending the request [default: stream for https, request for http]
    #[arg(long, value_name = "HOW")]
    via: Option<Via>,
    /// Encrypt the request for this Oblivious HTTP gateway, which sends it to the target; the exit can't read it
    #[arg(long, value_name = "URL", conflicts_with = "via")]
    gateway: Option<Url>,
    /// Write to this file instead of standard output; the file is created when the body is complete
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Address of the running client's page, the value of its --page option
    #[arg(long, default_value = control::DEFAULT, value_name = "ADDR")]
    control: SocketAddr,
}

/// Runs `umbel fetch`.
///
/// # Errors
/// When there is no client, the answer is missing or incomplete, or its status is no success.
pub(crate) async fn run(options: FetchOptions) -> Result<(), Failure> {
    let Some(path) = &options.output else { return fetch(options).await };
    output::check(path)?;
    // A signal would end the process at once and leave a partial file.
    tokio::select! {
        fetched = fetch(options) => fetched,
        failure = interrupted() => Err(failure),
    }
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() -> Failure {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => _ = terminate.recv().await,
            Err(_) => core::future::pending().await,
        }
    };
    tokio::select! {
        Ok(()) = ctrl_c() => {}
        () = terminated => {}
    }
    Failure::failed("interrupted before the end of the answer")
}

async fn fetch(options: FetchOptions) -> Result<(), Failure> {
    let mut request = request(&options)?;
    let via = options.via.unwrap_or(if options.url.scheme() == "https" { Via::Stream } else { Via::Request });
    let (length, body) = match options.data {
        Some(data) => body(data).await?,
        None => (None, Piped::whole(Bytes::new())),
    };
    if let Some(length) = length.filter(|length| *length > 0) {
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let (response, mut content) = send(options.control, via, options.gateway, request, body).await?;
    check_status(&response, &options.url)?;
    let length = response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut output = Output::open(options.output.as_deref(), length)?;
    loop {
        match content.piece().await {
            Ok(Some(piece)) => output.write(&piece)?,
            Ok(None) => return output.finish(),
            Err(_) => return Err(Failure::failed("the answer is truncated")),
        }
    }
}

fn request(options: &FetchOptions) -> Result<Request<()>, Failure> {
    let url = &options.url;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Failure::usage("the URL is not an http or https one"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Failure::usage("the URL has a user name; send it with --header \"Authorization: …\""));
    }
    let mut whole = url.clone();
    whole.set_fragment(None);
    let uri: Uri = whole.as_str().parse().map_err(|_| Failure::usage("the URL is invalid or too long"))?;
    let default_method = if options.data.is_some() { Method::POST } else { Method::GET };
    let mut request = Request::new(());
    *request.method_mut() = options.method.clone().unwrap_or(default_method);
    *request.uri_mut() = uri;
    for field in &options.header {
        let wrong = || Failure::usage(format!("--header: {field:?} is not a field; write \"Name: value\""));
        let (name, value) = field.split_once(':').ok_or_else(wrong)?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong())?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
        request.headers_mut().append(name, value);
    }
    Ok(request)
}

/// The body given by `data`, and its length if known. A file is read while it is sent.
async fn body(data: String) -> Result<(Option<u64>, Piped), Failure> {
    let Some(source) = data.strip_prefix('@') else {
        return Ok((data.len().try_into().ok(), Piped::whole(data.into())));
    };
    let (pipe, body) = Piped::unread();
    if source == "-" {
        tokio::spawn(copy_to_pipe(tokio::io::stdin(), pipe));
        return Ok((None, body));
    }
    let unreadable = |error: std::io::Error| Failure::invalid(source)(error);
    let file = File::open(source).await.map_err(unreadable)?;
    let metadata = file.metadata().await.map_err(unreadable)?;
    let length = metadata.is_file().then_some(metadata.len());
    if length == Some(0) {
        return Ok((length, Piped::whole(Bytes::new())));
    }
    tokio::spawn(copy_to_pipe(file, pipe));
    Ok((length, body))
}

async fn copy_to_pipe(mut source: impl AsyncRead + Unpin, pipe: Pipe) {
    loop {
        let mut piece = BytesMut::with_capacity(PIECE);
        let read = source.read_buf(&mut piece).await;
        let next = match read {
            Ok(0) => return,
            Ok(_) => Ok(piece.freeze()),
            Err(error) => Err(error.into()),
        };
        let last = next.is_err();
        if pipe.send(next).await.is_err() || last {
            return;
        }
    }
}

/// Sends `request` through the client at `control`; returns the response's head and the bytes after it.
async fn send(
    control: SocketAddr,
    via: Via,
    gateway: Option<Url>,
    request: Request<()>,
    body: Piped,
) -> Result<(Response<()>, Content<impl AsyncRead + Unpin>), Failure> {
    let socket = TcpStream::connect(control).await.map_err(|error| control::no_client(control, error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(socket)).await.map_err(|_| control::not_a_client(control))?;
    tokio::spawn(connection);
    let head = request_head(&request).map_err(Failure::usage)?;
    let mut post = Request::post("/api/request")
        .header(header::HOST, control.to_string())
        .header(header::CONTENT_TYPE, KIND)
        .header(API_FIELD, "1")
        .header(VIA, if via == Via::Request { BY_EXIT } else { BY_STREAM })
        .body(Encoded::new(head, body))
        .map_err(Failure::failed)?;
    if let Some(gateway) = gateway {
        let gateway = HeaderValue::from_str(gateway.as_str()).map_err(Failure::usage)?;
        post.headers_mut().insert(GATEWAY, gateway);
    }
    let answer = sender.send_request(post).await.map_err(|_| control::not_a_client(control))?;
    if answer.status() != StatusCode::OK || answer.headers().get(header::CONTENT_TYPE) != Some(&KIND) {
        return Err(api_failure(control, answer).await);
    }
    let bytes = BodyDataStream::new(answer.into_body().map_err(std::io::Error::other));
    read_response(StreamReader::new(bytes), u64::MAX).await.map_err(|_| control::not_a_client(control))
}

/// The failure with the client's error message.
async fn api_failure(control: SocketAddr, answer: Response<Incoming>) -> Failure {
    let status = answer.status();
    match Limited::new(answer.into_body(), MAX_ERROR_LEN).collect().await {
        Ok(error) => control::failure(control, status, &error.to_bytes()),
        Err(_) => control::not_a_client(control),
    }
}

/// Returns an error unless the response's status is a success.
fn check_status(response: &Response<()>, url: &Url) -> Result<(), Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let location = response
        .headers()
        .get(header::LOCATION)
        .filter(|_| status.is_redirection())
        .and_then(|value| url.join(value.to_str().ok()?).ok());
    Err(Failure::failed(match location {
        Some(location) => {
            // The target chose this URL, and the message quotes it for copying: a quotation mark in it would end the
            // quoted argument.
            let location = location.as_str().replace('\'', "%27");
            format!("the target redirects ({status}): umbel fetch '{location}'")
        }
        None => format!("the target answered with status {status}"),
    }))
}
