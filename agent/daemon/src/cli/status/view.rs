//! The status as users see it: the shape of `-o json` and `-o yaml`, and what the table is made from.
//!
//! Keys are camelCase, times RFC 3339 in UTC, states lower case. Sections that were not asked for are absent.

use ambit_proto::admin::v1 as proto;
use serde::Serialize;

use super::Section;
use crate::cli::{denials::DenialView, moment::Moment};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatusView {
    pub(super) node: String,
    pub(super) version: String,
    pub(super) started: Option<Moment>,
    pub(super) ready: bool,
    pub(super) pending: Vec<String>,
    pub(super) policies: u32,
    pub(super) kernel_tls: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pods: Option<Vec<PodView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificates: Option<Vec<CertificateView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) issuers: Option<Vec<IssuerView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clusters: Option<Vec<ClusterView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) connections: Option<Vec<ConnectionView>>,
    pub(super) connections_total: u64,
    /// Those seen last; `ambit denials` has all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) denials: Option<Vec<DenialView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) problems: Option<Vec<ProblemView>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodView {
    pub(super) namespace: String,
    pub(super) name: String,
    uid: String,
    pub(super) identity: String,
    pub(super) ips: Vec<String>,
    netns_cookie: u64,
    pub(super) state: &'static str,
    pub(super) error: String,
    pub(super) hindrance: String,
    found_by: String,
    pub(super) dns_captured: bool,
    pub(super) counters: CountersView,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CountersView {
    pub(super) captured: u64,
    pub(super) passed: u64,
    pub(super) bypassed: u64,
    pub(super) refused: u64,
    pub(super) probes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CertificateView {
    pub(super) identity: String,
    pub(super) serial: String,
    not_before: Option<Moment>,
    pub(super) not_after: Option<Moment>,
    pub(super) next_renewal: Option<Moment>,
    pub(super) last_error: String,
    pub(super) state: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IssuerView {
    pub(super) issuer: String,
    pub(super) url: String,
    pub(super) keys: u32,
    pub(super) fetched: Option<Moment>,
    pub(super) error: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClusterView {
    pub(super) name: String,
    pub(super) secret: String,
    pub(super) server: String,
    pub(super) trust_domain: String,
    pub(super) synced: Option<Moment>,
    pub(super) remembered: Option<Moment>,
    pub(super) objects: u64,
    pub(super) away: Option<Moment>,
    pub(super) error: String,
    pub(super) errors: u64,
    pub(super) services_without_stub: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConnectionView {
    pub(super) direction: &'static str,
    pub(super) source_addr: String,
    pub(super) destination_addr: String,
    pub(super) original_dst: String,
    pub(super) service: String,
    pub(super) source_workload: String,
    pub(super) destination_workload: String,
    pub(super) peer_identity: String,
    pub(super) security: &'static str,
    pub(super) group: String,
    pub(super) reused: bool,
    pub(super) client_to_server_bytes: u64,
    pub(super) server_to_client_bytes: u64,
    pub(super) opened: Option<Moment>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProblemView {
    pub(super) file: String,
    pub(super) object: String,
    pub(super) field: String,
    pub(super) message: String,
}

impl StatusView {
    /// Turns the agent's answer into what was asked for; no section named means all of them.
    pub(super) fn new(status: proto::StatusResponse, sections: &[Section]) -> Self {
        let wanted = |section| sections.is_empty() || sections.contains(&section);
        Self {
            node: status.node,
            version: status.version,
            started: Moment::of(status.started),
            ready: status.ready,
            pending: status.pending,
            policies: status.policies,
            kernel_tls: status.kernel_tls,
            pods: wanted(Section::Pods).then(|| status.pods.into_iter().map(PodView::from).collect()),
            certificates: wanted(Section::Certs)
                .then(|| status.certificates.into_iter().map(CertificateView::from).collect()),
            issuers: wanted(Section::Issuers)
                .then(|| status.issuers.into_iter().map(IssuerView::from).collect()),
            clusters: wanted(Section::Clusters)
                .then(|| status.clusters.into_iter().map(ClusterView::from).collect()),
            connections: wanted(Section::Connections)
                .then(|| status.connections.into_iter().map(ConnectionView::from).collect()),
            connections_total: status.connections_total,
            denials: wanted(Section::Denials)
                .then(|| status.denials.into_iter().map(|denial| DenialView::new(denial, "")).collect()),
            problems: wanted(Section::Problems)
                .then(|| status.problems.into_iter().map(ProblemView::from).collect()),
        }
    }
}

impl From<proto::Pod> for PodView {
    fn from(pod: proto::Pod) -> Self {
        let state = match pod.state() {
            proto::PodState::Unspecified => "unknown",
            proto::PodState::Pending => "pending",
            proto::PodState::Enrolled => "enrolled",
            proto::PodState::Failed => "failed",
        };
        let counters = pod.counters.unwrap_or_default();
        Self {
            namespace: pod.namespace,
            name: pod.name,
            uid: pod.uid,
            identity: pod.identity,
            ips: pod.ips,
            netns_cookie: pod.netns_cookie,
            state,
            error: pod.error,
            hindrance: pod.hindrance,
            found_by: pod.found_by,
            dns_captured: pod.dns_captured,
            counters: CountersView {
                captured: counters.captured,
                passed: counters.passed,
                bypassed: counters.bypassed,
                refused: counters.refused,
                probes: counters.probes,
            },
        }
    }
}

impl From<proto::Certificate> for CertificateView {
    fn from(certificate: proto::Certificate) -> Self {
        let state = match certificate.state() {
            proto::CertificateState::Unspecified => "unknown",
            proto::CertificateState::Pending => "pending",
            proto::CertificateState::Valid => "valid",
            proto::CertificateState::Expired => "expired",
            proto::CertificateState::Failed => "failed",
        };
        Self {
            identity: certificate.identity,
            serial: certificate.serial,
            not_before: Moment::of(certificate.not_before),
            not_after: Moment::of(certificate.not_after),
            next_renewal: Moment::of(certificate.next_renewal),
            last_error: certificate.last_error,
            state,
        }
    }
}

impl From<proto::Issuer> for IssuerView {
    fn from(issuer: proto::Issuer) -> Self {
        Self {
            issuer: issuer.issuer,
            url: issuer.url,
            keys: issuer.keys,
            fetched: Moment::of(issuer.fetched),
            error: issuer.error,
        }
    }
}

impl From<proto::Cluster> for ClusterView {
    fn from(cluster: proto::Cluster) -> Self {
        Self {
            name: cluster.name,
            secret: cluster.secret,
            server: cluster.server,
            trust_domain: cluster.trust_domain,
            synced: Moment::of(cluster.synced),
            remembered: Moment::of(cluster.remembered),
            objects: cluster.objects,
            away: Moment::of(cluster.away),
            error: cluster.error,
            errors: cluster.errors,
            services_without_stub: cluster.services_without_stub,
        }
    }
}

impl From<proto::Connection> for ConnectionView {
    fn from(connection: proto::Connection) -> Self {
        let direction = match connection.direction() {
            proto::Direction::Unspecified => "unknown",
            proto::Direction::Outbound => "outbound",
            proto::Direction::Inbound => "inbound",
        };
        let security = match connection.security() {
            proto::Security::Unspecified => "unknown",
            proto::Security::MutualTls => "mutual_tls",
            proto::Security::Tls => "tls",
            proto::Security::Plaintext => "plaintext",
            proto::Security::LocalIdentity => "local_identity",
        };
        Self {
            direction,
            source_addr: connection.source_addr,
            destination_addr: connection.destination_addr,
            original_dst: connection.original_dst,
            service: connection.service,
            source_workload: connection.source_workload,
            destination_workload: connection.destination_workload,
            peer_identity: connection.peer_identity,
            security,
            group: connection.group,
            reused: connection.reused,
            client_to_server_bytes: connection.client_to_server_bytes,
            server_to_client_bytes: connection.server_to_client_bytes,
            opened: Moment::of(connection.opened),
        }
    }
}

impl From<proto::Problem> for ProblemView {
    fn from(problem: proto::Problem) -> Self {
        Self { file: problem.file, object: problem.object, field: problem.field, message: problem.message }
    }
}
