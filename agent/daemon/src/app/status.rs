//! What `ambit status` shows, gathered from the rooms when asked.

use std::{sync::Arc, time::SystemTime};

use ambit_core::model::ObjectName;
use ambit_proto::admin::v1 as proto;

use super::{
    clusters, control_plane, health,
    locations::FoundBy,
    node::{PodStatus, Pods},
    observations,
    policies::Policies,
    tokens,
};
use crate::{
    admin::{PolicyProvider, StatusProvider},
    authz::{Providers, Standing},
    discovery::Feed,
    identity::{IdentityState, IdentityStatus, KeyStore, Root, issuer_name, roots},
    instance::Readiness,
    jwt::Tokens,
    reports::Hindrance,
    telemetry::{Direction, LiveConnection, Security, Telemetry},
};

/// Refusals in the status; there are more in what was observed.
const DENIALS: usize = 100;

/// Handles to the rooms that are looked at.
pub(super) struct Status {
    pub(super) node: String,
    pub(super) root_namespace: String,
    pub(super) instance: String,
    pub(super) started: SystemTime,
    pub(super) readiness: Readiness,
    pub(super) pods: Pods,
    pub(super) feed: Feed,
    pub(super) keys: KeyStore,
    pub(super) telemetry: Telemetry,
    pub(super) providers: Providers,
    pub(super) tokens: Tokens,
    /// The Service that certificates are asked of, if it is one of the cluster.
    pub(super) issuing_service: Option<ObjectName>,
    /// Whether the kernel has the TLS records of tunnels.
    pub(super) kernel_tls: String,
}

impl StatusProvider for Status {
    fn status(&self) -> proto::StatusResponse {
        let world = self.feed.world();
        let pending = self.readiness.pending();
        let of_objects = world.problems.iter().map(|problem| proto::Problem {
            file: problem.origin.to_string(),
            object: problem.object.clone().unwrap_or_default(),
            field: problem.field.clone().unwrap_or_default(),
            message: problem.message.clone(),
        });
        let caught = self.issuing_service.iter().flat_map(|service| {
            control_plane::caught(&world.mesh, service, &self.node).map(|pod| proto::Problem {
                object: format!("Pod {}", pod.name),
                message: control_plane::advice(service),
                ..proto::Problem::default()
            })
        });
        let (pods, identities) = (self.pods.load(), self.keys.status());
        let now = SystemTime::now();
        let by_name = health::by_name(&identities);
        let mut problems = health::problems(&pods, &identities, &self.readiness, now);
        problems.extend(tokens::problems(&self.tokens.issuers()));
        problems
            .extend(self.providers.standing().iter().filter_map(provider).chain(caught).chain(of_objects));
        let connections: Vec<_> = self.telemetry.live().iter().map(connection).collect();
        proto::StatusResponse {
            node: self.node.clone(),
            instance: self.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: Some(self.started.into()),
            ready: pending.is_empty(),
            pending: pending.into_iter().map(str::to_owned).collect(),
            pods: pods
                .iter()
                .map(|status| pod(status, health::hindrance(status, &by_name, now).as_ref()))
                .collect(),
            certificates: identities.iter().map(certificate).collect(),
            roots: roots(&identities).iter().map(root).collect(),
            connections_total: connections.len() as u64,
            connections,
            problems,
            issuers: self.tokens.issuers().iter().map(tokens::issuer).collect(),
            clusters: clusters::clusters(&self.feed),
            kernel_tls: self.kernel_tls.clone(),
            policies: u32::try_from(world.policies.len()).unwrap_or(u32::MAX),
            denials: self
                .telemetry
                .denials(DENIALS)
                .iter()
                .map(|(key, seen)| observations::denial(key, seen))
                .collect(),
        }
    }

    fn observations(&self) -> proto::ObservationsResponse {
        observations::observations(self)
    }

    fn policies(&self) -> Option<Arc<dyn PolicyProvider>> {
        Some(Arc::new(Policies { feed: self.feed.clone(), tokens: self.tokens.clone() }))
    }
}

/// What is wrong with an external authorization provider, if something is.
fn provider(provider: &Standing) -> Option<proto::Problem> {
    let (when, error) = provider.last_error.as_ref().filter(|_| provider.failing)?;
    let Standing { name, address, form, fail_open, allowed, denied, failed, .. } = provider;
    let ago = when.elapsed().unwrap_or_default().as_secs();
    let meanwhile = if *fail_open { "is let in" } else { "is refused" };
    Some(proto::Problem {
        object: format!("extension provider {name}"),
        message: format!(
            "{error} ({ago} s ago, at {address} by {form}); what CUSTOM policies have it asked about {meanwhile}. Checks so far: \
             {allowed} let in, {denied} denied, {failed} failed"
        ),
        ..proto::Problem::default()
    })
}

fn pod(pod: &PodStatus, hindrance: Option<&Hindrance>) -> proto::Pod {
    let (state, netns_cookie, error) = match &pod.state {
        Ok(cookie) => (proto::PodState::Enrolled, *cookie, String::new()),
        Err(error) => (proto::PodState::Failed, 0, error.clone()),
    };
    proto::Pod {
        namespace: pod.workload.name.namespace.to_string(),
        name: pod.workload.name.name.to_string(),
        uid: pod.workload.uid.to_string(),
        identity: pod.workload.identity.to_string(),
        ips: pod.workload.ips.iter().map(ToString::to_string).collect(),
        netns_cookie,
        state: state.into(),
        error,
        found_by: pod.found_by.map(FoundBy::as_str).unwrap_or_default().to_owned(),
        dns_captured: pod.captures_dns,
        hindrance: hindrance.map(Hindrance::reason).unwrap_or_default().to_owned(),
        counters: Some(proto::CaptureCounters {
            captured: pod.counters.captured,
            passed: pod.counters.passed,
            bypassed: pod.counters.bypassed,
            refused: pod.counters.refused,
            probes: pod.counters.probes,
        }),
    }
}

fn certificate(identity: &IdentityStatus) -> proto::Certificate {
    let state = match identity.state {
        IdentityState::Pending => proto::CertificateState::Pending,
        IdentityState::Valid => proto::CertificateState::Valid,
        IdentityState::Expired => proto::CertificateState::Expired,
    };
    proto::Certificate {
        identity: identity.id.to_string(),
        serial: identity.serial.clone().unwrap_or_default(),
        not_before: identity.not_before.map(Into::into),
        not_after: identity.not_after.map(Into::into),
        next_renewal: identity.next_renewal.map(Into::into),
        last_error: identity.last_error.clone().unwrap_or_default(),
        state: state.into(),
        issuer: identity
            .svid
            .as_ref()
            .and_then(|svid| svid.chain.first())
            .map(|leaf| issuer_name(leaf))
            .unwrap_or_default(),
        chain_pem: identity.svid.iter().flat_map(|svid| &svid.chain).map(|link| pem(link)).collect(),
    }
}

fn root(root: &Root) -> proto::Root {
    proto::Root {
        subject: root.subject.clone(),
        fingerprint: root.fingerprint.clone(),
        not_before: Some(root.not_before.into()),
        not_after: Some(root.not_after.into()),
        identities: u32::try_from(root.identities).unwrap_or(u32::MAX),
        pem: pem(&root.der),
    }
}

fn pem(der: &[u8]) -> String {
    let unix = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der), unix)
}

fn connection(live: &LiveConnection) -> proto::Connection {
    let meta = &live.meta;
    let (direction, peer) = match meta.direction {
        Direction::Outbound => (proto::Direction::Outbound, &meta.destination),
        Direction::Inbound => (proto::Direction::Inbound, &meta.source),
    };
    let (security, group, reused) = match meta.security {
        Security::MutualTls { group, reused } => (proto::Security::MutualTls, group, reused),
        Security::LocalIdentity => (proto::Security::LocalIdentity, "", false),
        Security::Tls => (proto::Security::Tls, "", false),
        Security::Plaintext => (proto::Security::Plaintext, "", false),
    };
    let workload = |party: &crate::telemetry::Party| {
        party.workload.as_ref().map(|workload| workload.name.to_string()).unwrap_or_default()
    };
    proto::Connection {
        direction: direction.into(),
        source_addr: meta.source_addr.to_string(),
        destination_addr: meta.destination_addr.to_string(),
        original_dst: meta.original_dst.map(|addr| addr.to_string()).unwrap_or_default(),
        service: meta.service.as_ref().map(|service| service.host.to_string()).unwrap_or_default(),
        source_workload: workload(&meta.source),
        destination_workload: workload(&meta.destination),
        peer_identity: peer.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
        security: security.into(),
        group: group.to_owned(),
        reused,
        client_to_server_bytes: live.client_to_server,
        server_to_client_bytes: live.server_to_client,
        opened: Some(live.opened.into()),
    }
}
