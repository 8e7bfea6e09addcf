//! Metrics for those only who may read them: TLS under a certificate of this process's own making, and a bearer token whose owner
//! the cluster's RBAC lets `get` the path `/metrics`.
//!
//! Tokens go to the API server and nowhere else. The certificate keeps listeners out; whom a scraper talks to it does not prove.

use std::{io, sync::Arc};

use hyper::{
    StatusCode,
    header::{AUTHORIZATION, HeaderMap},
};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::AdminError;
use crate::cluster::{Access, Authorizer};

/// The path that RBAC is asked about, whatever alias was scraped.
pub(crate) const METRICS_PATH: &str = "/metrics";

/// What stands before the metrics.
pub(crate) struct Guard {
    authorizer: Authorizer,
    tls: TlsAcceptor,
}

impl Guard {
    /// Makes a key and a certificate that last as long as this process.
    pub(crate) fn new(authorizer: Authorizer) -> Result<Self, AdminError> {
        let failed =
            |error: &dyn std::error::Error| AdminError::Certificate(crate::error::with_causes(error));
        let names = ["ambit".to_owned(), "localhost".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).map_err(|error| failed(&error))?;
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .map_err(|error| failed(&error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { authorizer, tls: TlsAcceptor::from(Arc::new(config)) })
    }

    /// The handshake with a client.
    pub(super) async fn secure(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.tls.accept(stream).await
    }

    /// Lets one pass who may read the metrics; otherwise the answer, with a sentence.
    pub(super) async fn admit(&self, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        let nobody = (StatusCode::UNAUTHORIZED, "a bearer token of this cluster is needed\n");
        let token = bearer(headers).ok_or(nobody)?;
        match self.authorizer.access(token).await {
            Ok(Access::Granted) => Ok(()),
            Ok(Access::Unknown) => Err(nobody),
            Ok(Access::Forbidden) => {
                Err((StatusCode::FORBIDDEN, "a ClusterRole must allow get on the nonResourceURL /metrics\n"))
            }
            Err(error) => {
                tracing::debug!(%error, "metrics were refused: the cluster could not be asked");
                Err((
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the Kubernetes API cannot be asked who may read this\n",
                ))
            }
        }
    }
}

/// The one bearer token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (only, more) = (values.next()?, values.next());
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (more.is_none() && scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
