//! A host outside: a pod that no manifest tells of, its CA, and its servers.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::HOST;
use crate::{
    certs::{self, Certificate},
    netns::Netns,
    process::{self, Process, eventually},
    topology::{MESHED, UNMESHED},
    world::World,
};

/// The address that applications dial for the server outside; it is routed nowhere.
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(198, 19, 100, 60);
/// The pod that is no pod.
pub(super) const POD: &str = "x";
/// Valid in any year these tests will run in.
pub(super) const NOW: (&str, &str) = certs::VALID;
/// Until a server listens.
const UP: Duration = Duration::from_secs(10);

/// The host, and the files of rules.
pub(super) struct Outside {
    pub(super) v4: Ipv4Addr,
    pub(super) folder: PathBuf,
    /// The agents' folder of files that rules name.
    pub(super) files: PathBuf,
}

impl Outside {
    /// Adds the host to a world whose agents then know where files of rules are.
    pub(super) fn build(world: &mut World) -> Result<Self> {
        world.topology.add(POD, "nowhere", 1)?;
        let folder = world.folder.join("outside");
        let files = world.folder.join("egress-files");
        for made in [&folder, &files.join(MESHED)] {
            fs::create_dir_all(made).with_context(|| made.display().to_string())?;
        }
        certs::strange_authority(&folder.join("ca"))?;
        certs::strange_authority(&folder.join("strange"))?;
        fs::copy(folder.join("ca/ca-cert.pem"), files.join(MESHED).join("ca.pem"))?;
        fs::copy(folder.join("strange/ca-cert.pem"), files.join(MESHED).join("strange.pem"))?;
        for agent in &mut world.agents {
            agent.stop()?;
            agent.add_flags(&["--egress-files", &files.display().to_string()]);
        }
        world.start_agents()?;
        Ok(Self { v4: world.pod(POD).v4, folder, files })
    }

    /// The path of a file of the host's.
    pub(super) fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Has `openssl s_server` serve a page over TLS, with further flags of its own.
    pub(super) fn serve(
        &self,
        world: &World,
        port: u16,
        certificate: &Certificate,
        flags: &[&str],
    ) -> Result<Listener> {
        self.serve_in(world, POD, port, certificate, flags)
    }

    /// The same in another pod.
    pub(super) fn serve_in(
        &self,
        world: &World,
        pod: &str,
        port: u16,
        certificate: &Certificate,
        flags: &[&str],
    ) -> Result<Listener> {
        let netns = &world.pod(pod).netns;
        let mut command = netns.command("openssl");
        command.args(["s_server", "-www", "-accept", &port.to_string()]);
        command.arg("-cert").arg(&certificate.certificate).arg("-key").arg(&certificate.key).args(flags);
        Listener::start(&mut command, netns, port, &self.folder)
    }
}

impl Outside {
    /// Has nginx demand a certificate of the host's CA, and tell of what it was shown.
    pub(super) fn nginx(&self, world: &World, port: u16, certificate: &Certificate) -> Result<Listener> {
        let netns = &world.pod(POD).netns;
        let (folder, ca) = (self.folder.display(), self.file("ca/ca-cert.pem"));
        let (own, key) = (certificate.certificate.display(), certificate.key.display());
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
            .concat();
        let text = format!(
            "daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log {folder}/nginx-error.log;\nevents {{}}\nhttp {{\n\
             access_log off;\n{temporary}server {{\nlisten {port} ssl;\nssl_certificate {own};\nssl_certificate_key {key};\n\
             ssl_client_certificate {ca};\nssl_verify_client on;\nreturn 200 \"$ssl_client_verify $ssl_client_s_dn\\n\";\n}}\n}}\n"
        );
        let conf = self.folder.join("nginx.conf");
        fs::write(&conf, text)?;
        let mut command = netns.command("nginx");
        Listener::start(command.arg("-c").arg(&conf), netns, port, &self.folder)
    }
}

/// A server of the host's; it ends when this is dropped.
pub(super) struct Listener {
    process: Process,
}

impl Listener {
    /// A server that says `words` to whoever comes, in plaintext, and ends the connection.
    pub(super) fn plaintext(world: &World, port: u16, words: &str) -> Result<Self> {
        let netns = &world.pod(POD).netns;
        let script = format!(
            "import socket\ns=socket.socket()\ns.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\ns.bind(('0.0.0.0',{port}))\n\
             s.listen(64)\nwhile True:\n c,_=s.accept()\n c.sendall({words:?}.encode())\n c.shutdown(socket.SHUT_WR)\n \
             c.settimeout(2)\n try:\n  while c.recv(4096): pass\n except OSError: pass\n c.close()\n"
        );
        let mut command = netns.command("python3");
        command.args(["-c", &script]);
        Self::start(&mut command, netns, port, &world.folder.join("outside"))
    }

    fn start(command: &mut Command, netns: &Netns, port: u16, folder: &Path) -> Result<Self> {
        let process = Process::start(command, &folder.join(format!("server-{port}.log")))?;
        eventually(UP, || {
            let listening = process::must(netns.command("ss").args(["-Hltn", &format!("sport = :{port}")]))?;
            anyhow::ensure!(!listening.trim().is_empty(), "nothing listens on {port}");
            Ok(())
        })?;
        Ok(Self { process })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.process.kill();
    }
}

/// A certificate of the host's CA for these names.
pub(super) fn certificate(
    outside: &Outside,
    name: &str,
    names: &[&str],
    validity: (&str, &str),
) -> Result<Certificate> {
    let sans: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
    // Lists of revoked certificates tell them apart by it.
    let serial = format!("{:08X}", 0x4712 + name.bytes().map(u32::from).sum::<u32>());
    certs::issue_for(&outside.folder.join("ca"), &outside.folder, name, &sans, validity, &serial)
}

/// A ServiceEntry that leads from the virtual address's port 80 to a port of the host.
pub(super) fn entry(outside: &Outside, port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: {MESHED}}}\nspec: {{hosts: [{HOST}], \
         addresses: [{VIP}], ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}], resolution: STATIC, endpoints: \
         [{{address: {}}}]}}\n",
        outside.v4
    )
}

/// A DestinationRule for the host with this `tls`.
pub(super) fn rule(tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: api, namespace: {MESHED}}}\nspec: {{host: \
         {HOST}, trafficPolicy: {{tls: {tls}}}}}\n"
    )
}

/// Holds the pods in the mesh to what is registered.
pub(in crate::suite) fn hold_to_registry(world: &World) -> Result<()> {
    let text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {MESHED}\n  labels: {{ambit.dev/dataplane: enabled, \
         ambit.dev/outbound-policy: REGISTRY_ONLY}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {UNMESHED}}}\n"
    );
    world.manifests.write("namespaces.yaml", &text)
}
