//! One request from beginning to end: who asks, for what, may they, sign, and say so in the audit log.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ambit_core::model::SpiffeId;
use ambit_proto::istio::auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::IstioCertificateService,
};
use prost_types::{Struct, value::Kind};
use rustls_pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    authority::Authority,
    callers::{Caller, Callers, MAX_TOKEN},
    limits::Limits,
    metrics::CaMetrics,
    refusal::Refusal,
    standing::Standing,
};
use crate::identity::{CheckedRequest, IssueError, Issued, Leaf, RequestFault};

/// The lifetime given to those who leave it to the CA, if it is not over the longest; istiod's, too.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Audit lines a second about one stranger, or about one caller that asks too often; ten may come at once.
const AUDIT_RATE: u32 = 1;
/// Signatures under way at a time; more wait.
const SIGNERS: usize = 16;
/// How many characters of an identity that a stranger asks for go into the audit log.
const MAX_IDENTITY: usize = 300;

/// The service. Cheap to clone.
#[derive(Clone)]
pub(super) struct Service(Arc<Inner>);

struct Inner {
    authority: Arc<Authority>,
    callers: Arc<Callers>,
    limits: Limits<Who>,
    audit: Limits<Who>,
    signers: Semaphore,
    max_ttl: Duration,
    metrics: CaMetrics,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Its address.
    pub(super) addr: IpAddr,
    /// The workload identity of its client certificate, which leads to a root of the CA.
    pub(super) identity: Option<SpiffeId>,
    /// How long its connection may go on.
    pub(super) standing: Arc<Standing>,
}

/// Whose rate is limited.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// A caller, by its node.
    Node(String),
    /// Somebody who has proved nothing.
    Stranger(IpAddr),
}

/// What is known of a request by its end, for the audit log.
struct Record {
    peer: IpAddr,
    caller: Option<Caller>,
    identity: Option<String>,
}

struct Signed {
    serial: String,
    not_after: SystemTime,
    ttl: Duration,
    response: IstioCertificateResponse,
}

impl Service {
    pub(super) fn new(
        authority: Arc<Authority>,
        callers: Arc<Callers>,
        limits: Limits<Who>,
        max_ttl: Duration,
        metrics: CaMetrics,
    ) -> Self {
        let (audit, signers) = (Limits::new(AUDIT_RATE), Semaphore::new(SIGNERS));
        Self(Arc::new(Inner { authority, callers, limits, audit, signers, max_ttl, metrics }))
    }

    async fn answer(
        &self,
        headers: &MetadataMap,
        peer: Option<&Peer>,
        asked: IstioCertificateRequest,
        record: &mut Record,
    ) -> Result<Signed, Refusal> {
        let inner = &self.0;
        let ca = inner.authority.ca();
        let identity = peer.and_then(|peer| peer.identity.as_ref());
        let caller =
            inner.callers.authenticate(bearer(headers)?, identity, record.peer, ca.trust_domain()).await?;
        if let Some(peer) = peer {
            peer.standing.prove();
        }
        let node = Who::Node(caller.node().to_owned());
        record.caller = Some(caller.clone());
        if !inner.limits.take(&node, Instant::now()) {
            return Err(Refusal::Rate);
        }
        let ttl = lifetime(asked.validity_duration, inner.max_ttl)?;
        let wanted = impersonated(asked.metadata.as_ref())?;
        record.identity = wanted.as_ref().map(ToString::to_string);
        let ending = |_| Refusal::Authority("it is ending".into());
        let signer = inner.signers.acquire().await.map_err(ending)?;
        let checked = blocking(move || CheckedRequest::from_pem(&asked.csr)).await??;
        drop(signer);
        record.identity = Some(checked.id.to_string());
        if wanted.as_ref().is_some_and(|wanted| *wanted != checked.id) {
            let text = "is for another identity than the one asked for";
            return Err(RequestFault::Request(text.into()).into());
        }
        if checked.id.trust_domain() != ca.trust_domain() {
            return Err(Refusal::TrustDomain { id: checked.id, own: ca.trust_domain().clone() });
        }
        caller.authorize(&checked.id).await?;
        let _signer = inner.signers.acquire().await.map_err(ending)?;
        blocking(move || {
            // What the CA refuses past the checks above is its own trouble, such as its certificate's end.
            let unable = |error: IssueError| Refusal::Authority(error.to_string());
            let issued = ca.sign(&checked, ttl).map_err(unable)?;
            signed(&issued).ok_or_else(|| Refusal::Authority("its certificate cannot be read".into()))
        })
        .await?
    }

    fn record(&self, outcome: Result<&Signed, &Refusal>, record: &Record) {
        let Record { peer, caller, identity } = record;
        let (who, node) = match caller {
            Some(caller) => (Who::Node(caller.node().to_owned()), caller.node()),
            None => (Who::Stranger(*peer), ""),
        };
        let proof = caller.as_ref().map_or("none", Caller::proof);
        let identity: String = identity.iter().flat_map(|text| text.chars()).take(MAX_IDENTITY).collect();
        match outcome {
            Ok(signed) => {
                let not_after = time::OffsetDateTime::from(signed.not_after);
                tracing::info!(
                    target: "audit", outcome = "issued", caller = proof, node, %peer, identity,
                    serial = signed.serial, ttl = signed.ttl.as_secs(), %not_after, "certificate issued"
                );
            }
            Err(refusal) => {
                let noisy = caller.is_none() || matches!(refusal, Refusal::Rate);
                if noisy && !self.0.audit.take(&who, Instant::now()) {
                    return;
                }
                tracing::warn!(
                    target: "audit", outcome = "refused", caller = proof, node, %peer, identity,
                    reason = refusal.label(), text = %refusal, "certificate refused"
                );
            }
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let start = Instant::now();
        let (headers, extensions, asked) = request.into_parts();
        let peer = extensions.get::<Peer>();
        let addr = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.addr);
        let mut record = Record { peer: addr, caller: None, identity: None };
        let outcome = self.answer(&headers, peer, asked, &mut record).await;
        self.record(outcome.as_ref(), &record);
        self.0.metrics.answered(outcome.as_ref().map(drop), start.elapsed());
        outcome.map(|signed| Response::new(signed.response)).map_err(|refusal| Status::from(&refusal))
    }
}

/// The bearer token, if there is an `authorization` at all. One of another kind proves nothing.
fn bearer(headers: &MetadataMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all("authorization").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let token = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && token.len() <= MAX_TOKEN)
        .map(|(_, token)| token.trim());
    match (token, values.next()) {
        (Some(token), None) if !token.is_empty() => Ok(Some(token)),
        _ => Err(Refusal::UnknownCaller("authorization")),
    }
}

/// The lifetime to give; whoever does not care gets the default.
fn lifetime(asked: i64, max: Duration) -> Result<Duration, Refusal> {
    match u64::try_from(asked).map(Duration::from_secs) {
        Err(_) | Ok(Duration::ZERO) => Ok(DEFAULT_TTL.min(max)),
        Ok(ttl) if ttl > max => Err(Refusal::Lifetime { asked, max }),
        Ok(ttl) => Ok(ttl),
    }
}

/// The identity that a node asks for on behalf of a workload. What stands there must be one; without it the request's own
/// name says what is asked for.
fn impersonated(metadata: Option<&Struct>) -> Result<Option<SpiffeId>, Refusal> {
    let Some(value) = metadata.and_then(|metadata| metadata.fields.get("ImpersonatedIdentity")) else {
        return Ok(None);
    };
    match &value.kind {
        Some(Kind::StringValue(text)) => {
            text.parse().map(Some).map_err(|error| RequestFault::Identity(format!("{error}")).into())
        }
        _ => Err(RequestFault::Identity("ImpersonatedIdentity is no text".into()).into()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Refusal::Authority("it failed internally".into()))
}

/// Leaf, intermediates, and as the last element all roots: so says Istio's `ca.proto`.
fn signed(issued: &Issued) -> Option<Signed> {
    let text = |der: &CertificateDer<'_>| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref()));
    let leaf = Leaf::read(issued.chain.first()?).ok()?;
    let mut cert_chain: Vec<String> = issued.chain.iter().map(text).collect();
    cert_chain.push(issued.roots.iter().map(text).collect());
    let ttl = leaf.not_after.duration_since(leaf.not_before).unwrap_or_default();
    Some(Signed {
        serial: leaf.serial,
        not_after: leaf.not_after,
        ttl,
        response: IstioCertificateResponse { cert_chain },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_bearer_token_is_taken() {
        let headers = |values: &[&str]| {
            let mut headers = MetadataMap::new();
            for value in values {
                headers.append("authorization", value.parse().unwrap());
            }
            headers
        };
        assert_eq!(bearer(&headers(&[])), Ok(None));
        assert_eq!(bearer(&headers(&["Bearer abc"])), Ok(Some("abc")));
        assert_eq!(bearer(&headers(&["bearer  abc "])), Ok(Some("abc")));
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN + 1));
        for bad in [&["Basic abc"][..], &["Bearer"], &["Bearer "], &["Bearer a", "Bearer b"], &[&long]] {
            assert!(bearer(&headers(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lifetimes_are_the_default_or_as_asked_but_never_over_the_longest() {
        let (hour, week) = (Duration::from_secs(3600), Duration::from_secs(7 * 86_400));
        assert_eq!(lifetime(0, week), Ok(DEFAULT_TTL));
        assert_eq!(lifetime(-5, hour), Ok(hour));
        assert_eq!(lifetime(60, hour), Ok(Duration::from_secs(60)));
        assert_eq!(lifetime(3600, hour), Ok(hour));
        assert_eq!(lifetime(3601, hour), Err(Refusal::Lifetime { asked: 3601, max: hour }));
        assert!(lifetime(i64::MAX, hour).is_err());
    }
}
