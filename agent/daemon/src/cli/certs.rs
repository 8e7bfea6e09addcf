//! `ambit certs`: the certificates and roots that the agent of this node holds. Keys never leave the agent.

use std::time::SystemTime;

use ambit_proto::admin::v1 as proto;
use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    ask::ask_in_time,
    moment::{Moment, until},
    output,
    remote::{Answer, Remote},
    table::Table,
};
use crate::config::{DEFAULT_RUN_DIR, Location};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ambit certs
  ambit certs shop/sa/web -o pem | openssl x509 -noout -text
  ambit certs -o json | jq -r '.certificates[] | select(.lastError != \"\") | .identity'
  ambit certs --run-dir /run/ambit-n2
  ambit certs --kubeconfig ~/.kube/config --node worker-1")]
pub(super) struct CertsArgs {
    /// Only identities that have this text in them
    identity: Option<String>,
    /// The folder of the agent's status socket
    #[arg(long, env = "AMBIT_RUN_DIR", hide_env_values = true, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: Location,
    /// How to show it; pem writes the chains, then the roots
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// The agent that called itself so, not its predecessor or successor
    #[arg(long, env = "AMBIT_INSTANCE", hide_env_values = true, value_name = "NAME")]
    instance: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
    Pem,
}

pub(super) fn run(args: &CertsArgs) -> anyhow::Result<()> {
    let identity = args.identity.as_deref();
    if !args.remote.wanted() {
        let status = ask_in_time(&args.run_dir.0, args.instance.as_deref(), 0)?;
        let view = CertsView::new(args.remote.narrowed(status), identity);
        return output::emit(&render(&view, args.output, SystemTime::now())?);
    }
    let mut views = Vec::new();
    let mut silent = Vec::new();
    for Answer { node, status } in args.remote.ask(0)? {
        match status {
            Ok(status) => {
                let view = CertsView::new(args.remote.narrowed(status), identity);
                views.push(NodeCerts { node, view });
            }
            Err(error) => silent.push(format!("{node}: {error:#}")),
        }
    }
    output::emit(&render_nodes(&views, args.output, SystemTime::now())?)?;
    if silent.is_empty() { Ok(()) } else { bail!("agents that did not answer: {}", silent.join("; ")) }
}

/// One node's certificates.
#[derive(Debug, Serialize)]
struct NodeCerts {
    node: String,
    #[serde(flatten)]
    view: CertsView,
}

fn render_nodes(nodes: &[NodeCerts], format: Format, now: SystemTime) -> anyhow::Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string_pretty(nodes)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(nodes)?,
        Format::Pem => nodes.iter().map(|node| node.view.pem()).collect(),
        Format::Table => {
            let tables = |table: &dyn Fn(&CertsView) -> Table| {
                Table::by_node(nodes.iter().map(|node| (node.node.clone(), table(&node.view))).collect())
            };
            let drawn = [
                ("CERTIFICATES", tables(&|view| view.certificates_table(now))),
                ("\nROOTS", tables(&|view| view.roots_table(now))),
            ];
            drawn.into_iter().fold(String::new(), |mut out, (title, table)| {
                out.push_str(title);
                out.push('\n');
                if let Some(table) = table {
                    table.draw(&mut out);
                }
                out
            })
        }
    })
}

fn render(view: &CertsView, format: Format, now: SystemTime) -> anyhow::Result<String> {
    Ok(match format {
        Format::Table => view.table(now),
        Format::Json => serde_json::to_string_pretty(view)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(view)?,
        Format::Pem => view.pem(),
    })
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CertsView {
    certificates: Vec<CertificateView>,
    roots: Vec<RootView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CertificateView {
    identity: String,
    state: &'static str,
    serial: String,
    issuer: String,
    not_before: Option<Moment>,
    not_after: Option<Moment>,
    next_renewal: Option<Moment>,
    last_error: String,
    chain: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RootView {
    subject: String,
    sha256: String,
    not_before: Option<Moment>,
    not_after: Option<Moment>,
    identities: u32,
    certificate: String,
}

impl CertsView {
    fn new(status: proto::StatusResponse, identity: Option<&str>) -> Self {
        let wanted = |certificate: &proto::Certificate| {
            identity.is_none_or(|identity| certificate.identity.contains(identity))
        };
        let certificates = status.certificates.into_iter().filter(wanted).map(CertificateView::from);
        Self {
            certificates: certificates.collect(),
            roots: status.roots.into_iter().map(RootView::from).collect(),
        }
    }

    fn table(&self, now: SystemTime) -> String {
        let mut out = String::from("CERTIFICATES\n");
        self.certificates_table(now).draw(&mut out);
        out.push_str("\nROOTS\n");
        self.roots_table(now).draw(&mut out);
        out
    }

    fn certificates_table(&self, now: SystemTime) -> Table {
        let mut table = Table::new([
            "IDENTITY",
            "STATE",
            "SERIAL",
            "ISSUER",
            "NOT BEFORE",
            "NOT AFTER",
            "RENEWAL",
            "LAST ERROR",
        ]);
        for certificate in &self.certificates {
            table.row([
                certificate.identity.clone(),
                certificate.state.to_owned(),
                certificate.serial.clone(),
                certificate.issuer.clone(),
                until(certificate.not_before, now),
                until(certificate.not_after, now),
                until(certificate.next_renewal, now),
                certificate.last_error.clone(),
            ]);
        }
        table
    }

    fn roots_table(&self, now: SystemTime) -> Table {
        let mut table = Table::new(["SUBJECT", "SHA-256", "NOT BEFORE", "NOT AFTER", "TRUSTED BY"]);
        for root in &self.roots {
            table.row([
                root.subject.clone(),
                root.sha256.chars().take(16).collect(),
                until(root.not_before, now),
                until(root.not_after, now),
                root.identities.to_string(),
            ]);
        }
        table
    }

    fn pem(&self) -> String {
        let chains = self.certificates.iter().map(|certificate| certificate.chain.as_str());
        chains.chain(self.roots.iter().map(|root| root.certificate.as_str())).collect()
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
            state,
            serial: certificate.serial,
            issuer: certificate.issuer,
            not_before: Moment::of(certificate.not_before),
            not_after: Moment::of(certificate.not_after),
            next_renewal: Moment::of(certificate.next_renewal),
            last_error: certificate.last_error,
            chain: certificate.chain_pem,
        }
    }
}

impl From<proto::Root> for RootView {
    fn from(root: proto::Root) -> Self {
        Self {
            subject: root.subject,
            sha256: root.fingerprint,
            not_before: Moment::of(root.not_before),
            not_after: Moment::of(root.not_after),
            identities: root.identities,
            certificate: root.pem,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost_types::Timestamp;

    use super::*;

    fn status() -> proto::StatusResponse {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let certificate = |identity: &str| proto::Certificate {
            identity: identity.to_owned(),
            serial: "1f2e".to_owned(),
            not_before: at(1_900_000_000 - 120),
            not_after: at(1_900_003_600),
            next_renewal: at(1_900_001_800),
            state: proto::CertificateState::Valid.into(),
            issuer: "CN=ambit CA".to_owned(),
            chain_pem: format!("PEM of {identity}\n"),
            ..proto::Certificate::default()
        };
        proto::StatusResponse {
            certificates: vec![certificate("spiffe://td1/ns/a/sa/x"), certificate("spiffe://td1/ns/b/sa/y")],
            roots: vec![proto::Root {
                subject: "CN=ambit CA".to_owned(),
                fingerprint: "0123456789abcdef0123".to_owned(),
                not_after: at(1_900_086_400),
                identities: 2,
                pem: "PEM of the root\n".to_owned(),
                ..proto::Root::default()
            }],
            ..proto::StatusResponse::default()
        }
    }

    #[test]
    fn every_format_tells_the_same() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        let view = CertsView::new(status(), Some("ns/b"));
        assert_eq!(
            render(&view, Format::Table, now).unwrap(),
            "\
CERTIFICATES
  IDENTITY                STATE  SERIAL  ISSUER       NOT BEFORE  NOT AFTER  RENEWAL    LAST ERROR
  spiffe://td1/ns/b/sa/y  valid  1f2e    CN=ambit CA  2m 0s ago   in 1h 0m   in 30m 0s  -

ROOTS
  SUBJECT      SHA-256           NOT BEFORE  NOT AFTER  TRUSTED BY
  CN=ambit CA  0123456789abcdef  -           in 1d 0h   2
"
        );
        let json = render(&view, Format::Json, now).unwrap();
        assert!(json.contains("\"notAfter\": \"2030-03-17T18:46:40Z\""), "{json}");
        assert!(render(&view, Format::Yaml, now).unwrap().contains("sha256: 0123456789abcdef0123"));
        let pem = render(&view, Format::Pem, now).unwrap();
        assert_eq!(pem, "PEM of spiffe://td1/ns/b/sa/y\nPEM of the root\n");
    }
}
