//! Certificates that no agent would issue, made with openssl from the built-in CA's own key or from a strange one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

/// What to put into a certificate.
#[derive(Clone, Copy, Debug)]
pub struct Recipe<'a> {
    /// A name for the files.
    pub name: &'a str,
    /// The URI SANs.
    pub uris: &'a [&'a str],
    /// Valid from and until, as `YYYYMMDDHHMMSSZ`.
    pub validity: (&'a str, &'a str),
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Valid in any year these tests will run in.
pub const VALID: (&str, &str) = ("20250101000000Z", "20690101000000Z");
/// Over for years.
pub const EXPIRED: (&str, &str) = ("20240101000000Z", "20240201000000Z");

/// Issues a leaf certificate from the CA in `ca` (`ca-cert.pem`, `ca-key.pem`); the files go to `folder`.
pub fn issue(ca: &Path, folder: &Path, recipe: &Recipe<'_>) -> Result<Certificate> {
    let file = |suffix: &str| folder.join(format!("{}.{suffix}", recipe.name));
    let (key, request, certificate) = (file("key"), file("csr"), file("crt"));
    let mut command = Command::new("openssl");
    command.args([
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=test",
    ]);
    process::must(command.arg("-keyout").arg(&key).arg("-out").arg(&request))?;
    fs::write(file("index"), "")?;
    fs::write(file("serial"), "4711\n")?;
    fs::write(file("cnf"), authority(&file("index"), &file("serial"), folder))
        .context("openssl's configuration")?;
    fs::write(file("ext"), extensions(recipe.uris)).context("openssl's extensions")?;
    let mut command = Command::new("openssl");
    command.args(["ca", "-batch", "-notext", "-md", "sha256"]);
    command.args(["-startdate", recipe.validity.0, "-enddate", recipe.validity.1]);
    command.arg("-config").arg(file("cnf")).arg("-extfile").arg(file("ext"));
    command.arg("-cert").arg(ca.join("ca-cert.pem")).arg("-keyfile").arg(ca.join("ca-key.pem"));
    process::must(command.arg("-in").arg(&request).arg("-out").arg(&certificate))?;
    Ok(Certificate { certificate, key })
}

/// Makes a CA of its own in `folder`, laid out like the built-in one's.
pub fn strange_authority(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut command = Command::new("openssl");
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "30",
    ]);
    command.args(["-subj", "/CN=strange", "-addext", "basicConstraints=critical,CA:TRUE"]);
    command.args(["-addext", "keyUsage=critical,keyCertSign"]);
    command.arg("-keyout").arg(folder.join("ca-key.pem")).arg("-out").arg(folder.join("ca-cert.pem"));
    process::must(&mut command)?;
    Ok(())
}

fn authority(index: &Path, serial: &Path, folder: &Path) -> String {
    format!(
        "[ca]\ndefault_ca = one\n[one]\ndatabase = {}\nserial = {}\nnew_certs_dir = {}\ndefault_md = sha256\npolicy = any\n\
         unique_subject = no\n[any]\ncommonName = optional\n",
        index.display(),
        serial.display(),
        folder.display()
    )
}

fn extensions(uris: &[&str]) -> String {
    let names: Vec<String> = uris.iter().map(|uri| format!("URI:{uri}")).collect();
    let san =
        if names.is_empty() { String::new() } else { format!("subjectAltName = {}\n", names.join(",")) };
    format!(
        "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\n\
         extendedKeyUsage = serverAuth,clientAuth\n{san}"
    )
}
