//! etcd and kube-apiserver in a network namespace of their own: Kubernetes without nodes, in seconds.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Ground, Programs, pki::Pki};
use crate::{
    netns::Netns,
    process::{self, Finished, Process},
    sandbox::Sandbox,
};

/// The control plane's address of a cluster alone.
pub const ADDRESS: &str = "198.18.0.1";
/// The API server's port.
pub(super) const PORT: u16 = 6443;
/// The bridge that bears the control plane's address, and that nodes are wired to.
pub(super) const BRIDGE: &str = "nodes";

/// What of the requests is written down, and where.
const AUDIT_POLICY: &str = "audit-policy.json";
const AUDIT_LOG: &str = "audit.log";

const START_LIMIT: Duration = Duration::from_secs(60);

/// A running API server with its etcd; dropping it kills both.
#[derive(Debug)]
pub struct ApiServer {
    programs: Programs,
    ground: Ground,
    netns: Netns,
    folder: PathBuf,
    pki: Pki,
    etcd: Option<Process>,
    server: Option<Process>,
}

impl ApiServer {
    /// Makes the namespace `<run>-<name>` and starts both in it; returns when the API is ready. Files and logs go to the
    /// folder `name` of the run.
    pub fn start(sandbox: &Sandbox, programs: &Programs, name: &str) -> Result<Self> {
        Self::start_on(Ground::FIRST, sandbox, programs, name)
    }

    /// The same at other addresses.
    pub(super) fn start_on(
        ground: Ground,
        sandbox: &Sandbox,
        programs: &Programs,
        name: &str,
    ) -> Result<Self> {
        let address = ground.control_plane();
        let folder = sandbox.folder().join(name);
        let pki = Pki::create(&folder.join("pki"))?;
        let serves = format!("IP:{address},IP:{},DNS:kubernetes.default.svc", ground.first_service());
        pki.issue("apiserver", "kube-apiserver", "kubernetes", &serves)?;
        let netns = Netns::create(&format!("{}-{name}", sandbox.prefix()))?;
        netns.ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        netns.ip(&["address", "add", &format!("{address}/24"), "dev", BRIDGE])?;
        netns.ip(&["link", "set", BRIDGE, "up"])?;
        let mut api =
            Self { programs: programs.clone(), ground, netns, folder, pki, etcd: None, server: None };
        api.user("admin", "admin", "system:masters")?;
        let audited = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata", "resources": [{"group": "", "resources": ["secrets"]}]}, {"level": "None"}],
        });
        fs::write(api.folder.join(AUDIT_POLICY), audited.to_string()).context(AUDIT_POLICY)?;
        api.resume()?;
        Ok(api)
    }

    /// Starts etcd and the API server where they do not run; returns when the API is ready.
    pub fn resume(&mut self) -> Result<()> {
        if self.etcd.is_none() {
            let mut etcd = self.netns.command(self.programs.path("etcd"));
            let clients = "http://127.0.0.1:2379";
            etcd.arg("--data-dir").arg(self.folder.join("etcd")).args(["--listen-client-urls", clients]);
            etcd.args(["--advertise-client-urls", clients]);
            etcd.args(["--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync"]);
            self.etcd = Some(self.spawn("etcd", &mut etcd)?);
        }
        if self.server.is_none() {
            let mut server = self.server_command();
            self.server = Some(self.spawn("apiserver", &mut server)?);
        }
        self.wait_ready()
    }

    /// Kills the API server and etcd; what they have stored stays.
    pub fn kill(&mut self) {
        // Without etcd, the API server does not end by SIGTERM.
        self.server = None;
        self.etcd = None;
    }

    /// `kubectl` with `arguments` as the administrator; its output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.try_kubectl(arguments, "")?.ok()
    }

    /// The same, with `input` on its standard input, and with whatever came of it.
    pub fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<Finished> {
        let mut command = self.kubectl_command();
        process::run_with_input(command.args(arguments), input, Duration::from_secs(150))
    }

    /// `kubectl` as the administrator, to be given its arguments.
    pub fn kubectl_command(&self) -> Command {
        kubectl(&self.programs, &self.netns, &self.admin())
    }

    /// `kubectl … -o json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// Creates or changes the objects of a manifest, JSON or YAML.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        self.try_kubectl(&["apply", "-f", "-"], manifest)?.ok().map(drop)
    }

    /// A token of a service account for `audience`, bound to a pod where one is named.
    pub fn token(
        &self,
        namespace: &str,
        service_account: &str,
        audience: &str,
        pod: Option<&str>,
    ) -> Result<String> {
        let mut arguments = vec!["create", "token", "-n", namespace, service_account, "--audience", audience];
        if let Some(pod) = pod {
            arguments.extend(["--bound-object-kind", "Pod", "--bound-object-name", pod]);
        }
        Ok(self.kubectl(&arguments)?.trim().to_owned())
    }

    /// One request as whoever bears `token`: `method` and `path`, with `body` as JSON or, where it is a PATCH, as a merge patch.
    /// Answers with the status and what came of it.
    pub fn as_bearer(&self, token: &str, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        let mut curl = self.netns.command("curl");
        curl.args([
            "-sS",
            "-m",
            "20",
            "--noproxy",
            "*",
            "-w",
            "\n%{http_code}",
            "-X",
            method,
            "--oauth2-bearer",
            token,
        ]);
        curl.arg("--cacert").arg(self.ca());
        if !body.is_null() {
            let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
            curl.args(["-H", &format!("content-type: application/{kind}"), "-d", &body.to_string()]);
        }
        let text = process::run(curl.arg(format!("{}{path}", self.url())), Duration::from_secs(30))?.ok()?;
        let (answer, code) = text.trim_end().rsplit_once('\n').context("curl told no status")?;
        // Answers of exec and their like are no JSON.
        Ok((code.parse()?, serde_json::from_str(answer).unwrap_or_default()))
    }

    /// The URL of the API, good in the namespace and on the nodes.
    pub fn url(&self) -> String {
        self.ground.api()
    }

    /// The addresses of the cluster.
    pub fn ground(&self) -> Ground {
        self.ground
    }

    /// The namespace it runs in.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The administrator's kubeconfig.
    pub fn admin(&self) -> PathBuf {
        admin(&self.folder)
    }

    /// The certificate of the cluster's CA.
    pub fn ca(&self) -> PathBuf {
        self.pki.ca()
    }

    /// Issues a client certificate for `user` of `group`; returns the path of its kubeconfig, `<name>.conf`.
    pub fn user(&self, name: &str, user: &str, group: &str) -> Result<PathBuf> {
        self.pki.user(name, user, group, &self.url())
    }

    /// Starts a process of the control plane that writes `<name>.log`.
    pub(super) fn spawn(&self, name: &str, command: &mut Command) -> Result<Process> {
        spawn(&self.folder, name, command)
    }

    /// Certificates, kubeconfigs and keys.
    pub(super) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// State, certificates and logs.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn server_command(&self) -> Command {
        let (pki, admin) = (&self.pki, "admin");
        let mut server = self.netns.command(self.programs.path("kube-apiserver"));
        server.args([
            "--etcd-servers",
            "http://127.0.0.1:2379",
            "--bind-address",
            &self.ground.control_plane(),
        ]);
        server.args([
            "--secure-port",
            &PORT.to_string(),
            "--service-cluster-ip-range",
            &self.ground.services(),
        ]);
        server.arg("--tls-cert-file").arg(pki.certificate("apiserver"));
        server.arg("--tls-private-key-file").arg(pki.key("apiserver"));
        server.arg("--client-ca-file").arg(pki.ca());
        server.arg("--service-account-key-file").arg(pki.signing_key());
        server.arg("--service-account-signing-key-file").arg(pki.signing_key());
        server.args(["--service-account-issuer", "https://kubernetes.default.svc"]);
        server.arg("--kubelet-client-certificate").arg(pki.certificate(admin));
        server.arg("--kubelet-client-key").arg(pki.key(admin));
        server.args(["--kubelet-preferred-address-types", "InternalIP", "--authorization-mode", "Node,RBAC"]);
        server.args(["--allow-privileged=true", "--cert-dir"]).arg(self.folder.join("pki"));
        server.arg("--audit-policy-file").arg(self.folder.join(AUDIT_POLICY));
        server.arg("--audit-log-path").arg(self.folder.join(AUDIT_LOG));
        server
    }

    /// Who has asked for Secrets so far, without what is in them: an event of the API a line.
    pub fn asked_for_secrets(&self) -> Result<String> {
        let path = self.folder.join(AUDIT_LOG);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let probe = |api: &mut Self| {
            for (name, process) in [("etcd", &mut api.etcd), ("kube-apiserver", &mut api.server)] {
                let Some(process) = process else { bail!("{name} was not started") };
                if !process.runs() {
                    return Ok(Some(format!("{name} has ended: {}", process::tail(&process.output()))));
                }
            }
            let ready = api.try_kubectl(&["get", "--raw", "/readyz", "--request-timeout", "5s"], "")?;
            ready.ok().map(|_| None)
        };
        let ended = process::eventually(START_LIMIT, || probe(self)).context("the API is not ready")?;
        ensure!(ended.is_none(), "{}", ended.unwrap_or_default());
        Ok(())
    }
}

/// `kubectl` with a kubeconfig, in the control plane's namespace: its address exists nowhere else.
pub(super) fn kubectl(programs: &Programs, netns: &Netns, kubeconfig: &Path) -> Command {
    let mut command = netns.command(programs.path("kubectl"));
    command.arg("--kubeconfig").arg(kubeconfig);
    command
}

/// The administrator's kubeconfig of the cluster in `folder`.
pub(super) fn admin(folder: &Path) -> PathBuf {
    folder.join("pki/admin.conf")
}

/// Starts a process that writes `<name>.log` in `folder` and that a Ctrl-C at the terminal does not reach: the sandbox
/// ends it, in its order.
pub(super) fn spawn(folder: &Path, name: &str, command: &mut Command) -> Result<Process> {
    use std::os::unix::process::CommandExt as _;

    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    Process::start(command.process_group(0), &folder.join(format!("{name}.log")))
}
