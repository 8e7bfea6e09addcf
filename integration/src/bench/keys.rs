//! The certificates of proxied data paths: one authority, a pair for each end, and one of a stranger whom both must refuse.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{certs, process};

/// The certificates, all under one root.
#[derive(Debug)]
pub(super) struct Keys {
    /// The root, PEM.
    pub(super) roots: PathBuf,
    pub(super) client: Leaf,
    pub(super) server: Leaf,
    /// Of another identity than either.
    pub(super) stranger: Leaf,
}

/// An ECDSA P-256 certificate with one URI and one DNS name, and its key.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// Both in one file.
    pub(super) both: PathBuf,
    /// The SPIFFE ID, its URI name.
    pub(super) identity: String,
    /// Its DNS name, for who cannot check a URI.
    pub(super) name: String,
}

impl Keys {
    /// Makes all of them in `folder`.
    pub(super) fn make(folder: &Path) -> Result<Self> {
        certs::strange_authority(folder)?;
        Ok(Self {
            roots: folder.join("ca-cert.pem"),
            client: leaf(folder, "client")?,
            server: leaf(folder, "server")?,
            stranger: leaf(folder, "stranger")?,
        })
    }
}

fn leaf(folder: &Path, account: &str) -> Result<Leaf> {
    let identity = format!("spiffe://cluster.local/ns/bench/sa/{account}");
    let name = format!("{account}.bench");
    let sans = [format!("URI:{identity}"), format!("DNS:{name}")];
    let made = certs::request(folder, account, &[&sans[0], &sans[1]])?;
    let (certificate, both) = (folder.join(format!("{account}.crt")), folder.join(format!("{account}.pem")));
    let mut sign = Command::new("openssl");
    sign.args(["x509", "-req", "-days", "30", "-CAcreateserial", "-copy_extensions", "copyall", "-CA"]);
    sign.arg(folder.join("ca-cert.pem")).arg("-CAkey").arg(folder.join("ca-key.pem"));
    process::must(sign.arg("-in").arg(&made.certificate).arg("-out").arg(&certificate))?;
    let read = |file: &Path| fs::read_to_string(file).with_context(|| file.display().to_string());
    fs::write(&both, read(&certificate)? + &read(&made.key)?)?;
    Ok(Leaf { certificate, key: made.key, both, identity, name })
}
