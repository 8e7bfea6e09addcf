//! The cluster's certificates and kubeconfigs, made with openssl.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::process;

/// A cluster's CA, its signing key for service accounts, and what they have issued, in one folder.
#[derive(Clone, Debug)]
pub(super) struct Pki {
    folder: PathBuf,
}

/// Days; a cluster that is kept lives no longer.
const VALID: &str = "30";
const EC: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

impl Pki {
    /// Makes the CA and the signing key.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let pki = Self { folder: folder.to_owned() };
        // Nothing of the machine's own openssl.cnf: extensions are given one by one.
        fs::write(pki.file("openssl.cnf"), "[req]\ndistinguished_name = name\n[name]\n")?;
        let mut command = pki.request("ca", "/CN=kubernetes");
        command.args(["-addext", "basicConstraints=critical,CA:TRUE"]);
        process::must(command.args(["-addext", "keyUsage=critical,keyCertSign,digitalSignature"]))?;
        let mut command = Command::new("openssl");
        command.args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"]);
        process::must(command.arg(pki.signing_key()))?;
        Ok(pki)
    }

    /// Issues `name.crt` and `name.key` for a user or server of Kubernetes: its common name, its organisation (group), and
    /// the names that it serves under.
    pub(super) fn issue(&self, name: &str, user: &str, group: &str, serves: &str) -> Result<()> {
        let mut command = self.request(name, &format!("/O={group}/CN={user}"));
        command.arg("-CA").arg(self.ca()).arg("-CAkey").arg(self.file("ca.key"));
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        command.args(["-addext", "extendedKeyUsage=serverAuth,clientAuth"]);
        if !serves.is_empty() {
            command.args(["-addext", &format!("subjectAltName={serves}")]);
        }
        process::must(&mut command)?;
        Ok(())
    }

    /// Issues a client certificate, and writes the kubeconfig `name.conf` that uses it; returns its path.
    pub(super) fn user(&self, name: &str, user: &str, group: &str, server: &str) -> Result<PathBuf> {
        self.issue(name, user, group, "")?;
        self.kubeconfig(name, server)
    }

    /// Writes the kubeconfig `name.conf` for the certificate `name`; returns its path.
    pub(super) fn kubeconfig(&self, name: &str, server: &str) -> Result<PathBuf> {
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "ambit",
            "clusters": [{ "name": "ambit", "cluster": { "server": server, "certificate-authority": self.ca() } }],
            "users": [{ "name": name, "user": {
                "client-certificate": self.certificate(name), "client-key": self.key(name),
            } }],
            "contexts": [{ "name": "ambit", "context": { "cluster": "ambit", "user": name } }],
        });
        let file = self.file(&format!("{name}.conf"));
        fs::write(&file, format!("{config:#}\n")).with_context(|| file.display().to_string())?;
        Ok(file)
    }

    /// The CA's certificate.
    pub(super) fn ca(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// The key that signs the tokens of service accounts.
    pub(super) fn signing_key(&self) -> PathBuf {
        self.file("service-accounts.key")
    }

    /// The certificate `name`.
    pub(super) fn certificate(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}.crt"))
    }

    /// The key of the certificate `name`.
    pub(super) fn key(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}.key"))
    }

    fn request(&self, name: &str, subject: &str) -> Command {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-new", "-days", VALID]).args(EC);
        command.arg("-config").arg(self.file("openssl.cnf")).args(["-subj", subject]);
        command.arg("-keyout").arg(self.key(name)).arg("-out").arg(self.certificate(name));
        command
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}
