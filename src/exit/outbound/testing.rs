//! Test web servers, with and without TLS.

use core::time::Duration;
use std::{net::SocketAddr, sync::Arc};

use hyper::{
    Request, Response,
    body::{Body, Incoming},
};
use tokio_rustls::TlsAcceptor;

use super::{OutboundClient, OutboundLimits, TargetPolicies};
use crate::{
    http_exchange::body::{BodyError, OutgoingBody},
    io::{
        resolver::{Resolver, ResolverOptions},
        testing::target_server,
        tls::Tls,
    },
};

/// The certificate authority of [`https_server`], with its root in a PEM file.
pub(crate) struct TestRoot {
    pub(crate) file: tempfile::NamedTempFile,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl TestRoot {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, certificate.pem().as_bytes()).unwrap();
        Self { file, issuer: rcgen::Issuer::new(params, key) }
    }

    /// The TLS acceptor of a server with a certificate for `names`.
    pub(crate) fn server(&self, names: &[&str]) -> TlsAcceptor {
        use tokio_rustls::rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivatePkcs8KeyDer};
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        Arc::new(config).into()
    }
}

/// A client of targets that these policies allow, with this timeout of an exchange. No name server answers its queries.
pub(crate) fn outbound_client(policies: TargetPolicies, tls: Tls, exchange_timeout: Duration) -> OutboundClient {
    let options = ResolverOptions { servers: vec!["127.0.0.1:9".parse().unwrap()], ..ResolverOptions::default() };
    let mut limits = OutboundLimits::default();
    limits.exchange.head_timeout = exchange_timeout;
    limits.exchange.idle_timeout = Some(exchange_timeout);
    OutboundClient::new(policies, Arc::new(Resolver::new(&options)), tls, limits)
}

/// Serves HTTP with `answer`; returns the address.
pub(crate) async fn http_server<F, B>(
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = Response<B>> + Send + 'static,
    B: OutgoingBody,
{
    target_server(move |socket| serve_http(socket, answer.clone())).await
}

/// Serves HTTPS with `answer` and the certificate of `acceptor`; returns the address.
pub(crate) async fn https_server<F, B>(
    acceptor: TlsAcceptor,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = Response<B>> + Send + 'static,
    B: OutgoingBody,
{
    target_server(move |socket| {
        let (acceptor, answer) = (acceptor.clone(), answer.clone());
        async move {
            if let Ok(stream) = acceptor.accept(socket).await {
                serve_http(stream, answer).await;
            }
        }
    })
    .await
}

async fn serve_http<S, F, B>(stream: S, answer: impl Fn(Request<Incoming>) -> F)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    F: Future<Output = Response<B>>,
    B: Body<Error: Into<BodyError>> + 'static,
{
    let service = hyper::service::service_fn(|request| {
        let answered = answer(request);
        async move { Ok::<_, core::convert::Infallible>(answered.await) }
    });
    // The other end may disconnect at any time.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
        .await;
}
