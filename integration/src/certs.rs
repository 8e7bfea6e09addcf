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
    let sans: Vec<String> = recipe.uris.iter().map(|uri| format!("URI:{uri}")).collect();
    issue_for(ca, folder, recipe.name, &sans, recipe.validity, "4711")
}

/// The same for any subject alternative names, such as `DNS:api.example.com`, under this serial number, hexadecimal.
pub fn issue_for(
    ca: &Path,
    folder: &Path,
    name: &str,
    sans: &[String],
    validity: (&str, &str),
    serial: &str,
) -> Result<Certificate> {
    let file = |suffix: &str| folder.join(format!("{name}.{suffix}"));
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
    fs::write(file("serial"), format!("{serial}\n"))?;
    fs::write(file("number"), "01\n")?;
    fs::write(file("cnf"), authority(&file("index"), &file("serial"), &file("number"), folder))
        .context("openssl's configuration")?;
    fs::write(file("ext"), extensions(sans)).context("openssl's extensions")?;
    let mut command = Command::new("openssl");
    command.args(["ca", "-batch", "-notext", "-md", "sha256"]);
    command.args(["-startdate", validity.0, "-enddate", validity.1]);
    command.arg("-config").arg(file("cnf")).arg("-extfile").arg(file("ext"));
    command.arg("-cert").arg(ca.join("ca-cert.pem")).arg("-keyfile").arg(ca.join("ca-key.pem"));
    process::must(command.arg("-in").arg(&request).arg("-out").arg(&certificate))?;
    Ok(Certificate { certificate, key })
}

/// The CA's list of revoked certificates, with this one that it issued by [`issue_for`] on it.
pub fn revoke(ca: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    let file = |suffix: &str| folder.join(format!("{name}.{suffix}"));
    let list = file("crl");
    let command = || {
        let mut command = Command::new("openssl");
        command.args(["ca", "-config"]).arg(file("cnf")).arg("-cert").arg(ca.join("ca-cert.pem"));
        command.arg("-keyfile").arg(ca.join("ca-key.pem"));
        command
    };
    process::must(command().arg("-revoke").arg(file("crt")))?;
    process::must(command().args(["-gencrl", "-crldays", "30", "-out"]).arg(&list))?;
    Ok(list)
}

/// Makes a key and a request with these subject alternative names (`URI:…`, `DNS:…`) and an empty subject; the request is
/// what stands as certificate.
pub fn request(folder: &Path, name: &str, sans: &[&str]) -> Result<Certificate> {
    let (key, request) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.csr")));
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
        "/",
    ]);
    command.args(["-sha256", "-addext", &format!("subjectAltName=critical,{}", sans.join(","))]);
    process::must(command.arg("-keyout").arg(&key).arg("-out").arg(&request))?;
    Ok(Certificate { certificate: request, key })
}

/// Makes a CA in `folder` as operators plug one in: an intermediate CA under a root whose key is not there.
pub fn plugged_in_authority(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let script = "set -e
        key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
        openssl req -x509 $key -keyout root.key -out root-cert.pem -days 30 -subj '/O=test/CN=Root CA' \
          -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
        openssl req -new $key -keyout ca-key.pem -out ca.csr -subj '/O=test/CN=Intermediate CA'
        printf 'basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n' > ext
        printf 'subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' >> ext
        openssl x509 -req -in ca.csr -CA root-cert.pem -CAkey root.key -CAcreateserial -days 20 -extfile ext -out ca-cert.pem
        cat ca-cert.pem root-cert.pem > cert-chain.pem
        rm root.key ca.csr ext";
    process::must(Command::new("sh").args(["-c", script]).current_dir(folder))?;
    Ok(())
}

/// What `openssl verify` thinks of a chain, leaf first, under `roots`: valid now, and for either end of TLS.
pub fn verify(folder: &Path, chain: &[&str], roots: &Path) -> Result<()> {
    let (leaf, middle) = (folder.join("verify-leaf.pem"), folder.join("verify-middle.pem"));
    let (first, rest) = chain.split_first().context("a chain without a certificate")?;
    fs::write(&leaf, first)?;
    fs::write(&middle, rest.concat())?;
    for purpose in ["sslclient", "sslserver"] {
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"]).arg(roots);
        if !rest.is_empty() {
            command.arg("-untrusted").arg(&middle);
        }
        process::must(command.arg(&leaf))?;
    }
    Ok(())
}

/// The PEM blocks of a text, each as a text of its own.
pub fn blocks(pem: &str) -> Vec<&str> {
    const END: &str = "-----END CERTIFICATE-----\n";
    pem.split_inclusive(END).filter(|block| block.ends_with(END)).collect()
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
    command.args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
    command.arg("-keyout").arg(folder.join("ca-key.pem")).arg("-out").arg(folder.join("ca-cert.pem"));
    process::must(&mut command)?;
    Ok(())
}

fn authority(index: &Path, serial: &Path, number: &Path, folder: &Path) -> String {
    format!(
        "[ca]\ndefault_ca = one\n[one]\ndatabase = {}\nserial = {}\ncrlnumber = {}\nnew_certs_dir = {}\ndefault_md = sha256\npolicy = any\n\
         unique_subject = no\n[any]\ncommonName = optional\n",
        index.display(),
        serial.display(),
        number.display(),
        folder.display()
    )
}

fn extensions(sans: &[String]) -> String {
    let san = if sans.is_empty() { String::new() } else { format!("subjectAltName = {}\n", sans.join(",")) };
    format!(
        "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\n\
         extendedKeyUsage = serverAuth,clientAuth\n{san}"
    )
}
