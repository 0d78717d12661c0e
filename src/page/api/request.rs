//! The API for HTTP requests of the command line: requests and responses as Binary HTTP (RFC 9292), both streamed.
//!
//! The header field [`VIA`] selects whether an exit performs the request. If a response is truncated, the answer is
//! truncated too.

use axum::{
    BoxError, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use http_body_util::{BodyDataStream, BodyExt as _};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;
use url::Url;

use crate::{
    connector::Connector,
    http_exchange::binary::{Encoded, MessageError, Piped, fill, read_request, response_head},
    page::SearchPage,
    requests::{http::RequestError, oblivious::ObliviousError},
};

use super::{connect_status, failed};

/// The header field with the method of sending: [`BY_EXIT`] or [`BY_STREAM`].
pub(crate) const VIA: &str = "umbel-via";
/// The value of [`VIA`] for a request that an exit performs.
pub(crate) const BY_EXIT: &str = "request";
/// The value of [`VIA`] for a request that the client sends over a stream to the target.
pub(crate) const BY_STREAM: &str = "stream";
/// The header field with the URL of the Oblivious HTTP gateway to which an exit forwards the sealed request.
pub(crate) const GATEWAY: &str = "umbel-gateway";
/// The media type of both messages (RFC 9292 §7).
pub(crate) const KIND: HeaderValue = HeaderValue::from_static("message/bhttp");

/// Time limit of each piece of the request's content. It is long, because the command line may wait for its input.
const PIECE_TIMEOUT: core::time::Duration = core::time::Duration::from_secs(24 * 60 * 60);

pub(super) fn router<C: Connector>() -> Router<SearchPage<C>> {
    Router::new().route("/api/request", post(request))
}

async fn request<C: Connector>(State(page): State<SearchPage<C>>, call: Request) -> Response {
    let gateway = call.headers().get(GATEWAY).map(|value| value.to_str().ok()?.parse::<Url>().ok());
    let by_exit = call.headers().get(VIA).map(HeaderValue::as_bytes) == Some(BY_EXIT.as_bytes());
    let bytes = BodyDataStream::new(call.into_body().map_err(std::io::Error::other));
    let request = match read(StreamReader::new(bytes)).await {
        Ok(request) => request,
        Err(error) => return failed(StatusCode::BAD_REQUEST, error.to_string()),
    };
    if let Some(gateway) = gateway {
        let Some(gateway) = gateway else { return refused(RequestError::Address.into()) };
        return page.requester.oblivious(&gateway, request).await.map_or_else(refused, answer);
    }
    let isolation = page.requester.isolation();
    let sent = if by_exit {
        page.requester.perform(request, Vec::new(), isolation).await.map(|performed| performed.response)
    } else {
        page.requester.over_stream(request, isolation).await
    };
    sent.map_or_else(|error| refused(error.into()), answer)
}

async fn read<R>(reader: R) -> Result<hyper::Request<Piped>, MessageError>
where
    R: AsyncRead + Unpin + Send + 'static,
{
    let (request, mut content) = read_request(reader, u64::MAX).await?;
    let (pipe, body) = Piped::new(content.piece().await?);
    // The task ends when the content is complete or its reader is dropped.
    tokio::spawn(async move { fill(&mut content, pipe, PIECE_TIMEOUT).await });
    Ok(request.map(|()| body))
}

fn answer<B>(response: hyper::Response<B>) -> Response
where
    B: hyper::body::Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    match response_head(&response) {
        Ok(head) => {
            let message = Encoded::new(head, response.into_body());
            ([(header::CONTENT_TYPE, KIND)], Body::new(message)).into_response()
        }
        Err(_) => refused(RequestError::NotHttp.into()),
    }
}

fn refused(error: ObliviousError) -> Response {
    let status = match error {
        ObliviousError::Request(RequestError::Address) | ObliviousError::TooLarge => StatusCode::BAD_REQUEST,
        ObliviousError::NoSecondExit | ObliviousError::Request(RequestError::NoExit) => StatusCode::SERVICE_UNAVAILABLE,
        ObliviousError::Request(RequestError::Connect(error)) => connect_status(error),
        _ => StatusCode::BAD_GATEWAY,
    };
    failed(status, error.to_string())
}
