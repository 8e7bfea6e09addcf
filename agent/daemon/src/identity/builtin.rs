//! The built-in CA: signs certificates for workloads of one trust domain with a CA kept in a directory.
//!
//! Owns that directory's layout, which is that of Istio's `cacerts` (Istio's documentation, "Plug in CA Certificates"). Promises to sign nothing but the identity that was asked for.
//! Leaves to its callers who may ask for which identity.

mod error;
mod files;
mod live;
mod root;

use std::{
    future,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::pem::{EncodeConfig, LineEnding, Pem, encode_config};
use ambit_core::model::{SpiffeId, TrustDomain};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use time::OffsetDateTime;
use zeroize::Zeroize;

use self::files::{CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT, TLS_NAMES};
pub(crate) use self::{error::CaError, files::CaFiles, live::LiveCa};
use super::{
    CheckedRequest, Clock, Csr, IssueError, IssueFuture, Issued, Issuer, Svid, TrustBundle,
    certificate::{parse, serial, system_time, uri_names},
    key::PrivateKey,
    pem,
    svid::PendingKey,
};

/// How far a certificate's not-before is dated back, for clocks that are behind. istiod does the same, by as much
/// (`ClockSkewGracePeriod` in its sources).
const BACKDATE: Duration = Duration::from_secs(120);

/// A certificate authority loaded from a directory. Its key stays in memory for as long as it lives.
pub(crate) struct BuiltinCa {
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    issuer: rcgen::Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
    /// What follows the leaf in every chain: this CA and those above it, without the roots.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
}

/// A TLS server's certificate that the CA signed, with its key.
pub(crate) struct ServerCert {
    /// Leaf first; no roots.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub(crate) key: PrivateKey,
    /// Last moment of validity.
    pub(crate) not_after: SystemTime,
}

/// One root of a trust bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootStanding {
    /// Its serial number, lower-case hexadecimal.
    pub(crate) serial: String,
    /// Last moment of validity.
    pub(crate) not_after: SystemTime,
}

impl BuiltinCa {
    /// Loads the CA in `dir` (`ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`); where there is none, makes a
    /// self-signed one for ten years. Several processes may open one directory at once: all get the same CA. Blocks,
    /// at most some seconds, while another makes it.
    pub(crate) fn open(
        dir: &Path,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        let files = files::open(dir, || Self::make(dir, &trust_domain, clock.now()))?;
        Self::read(dir, &files, trust_domain, clock)
    }

    /// Loads the CA that somebody else keeps in `dir`, such as a mounted `cacerts` secret. Makes and changes nothing.
    pub(crate) fn open_plugged_in(
        dir: &Path,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        Self::read(dir, &files::read_plugged_in(dir)?, trust_domain, clock)
    }

    /// Takes a CA from its parts, if what it signs would be believed. `place` is for messages.
    pub(crate) fn read(
        place: &Path,
        files: &CaFiles,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        let ca = Self::load(place, files, trust_domain, clock)?;
        ca.try_out(&place.join(files.layout.root_cert))?;
        Ok(ca)
    }

    /// A new self-signed CA for ten years. `place` is for messages.
    pub(crate) fn make(
        place: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<CaFiles, CaError> {
        root::make(trust_domain, now).map_err(|source| CaError::Make { dir: place.to_owned(), source })
    }

    /// Names that the files of a CA may have in its directory.
    pub(crate) const FILES: [&str; 7] =
        [CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT, TLS_NAMES[0], TLS_NAMES[1], TLS_NAMES[2]];

    /// The last moment at which this CA's signatures hold.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The trust bundle that goes with every certificate.
    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The same, PEM.
    pub(crate) fn roots_pem(&self) -> String {
        let form = EncodeConfig::new().set_line_ending(LineEnding::LF);
        let text = |root: &CertificateDer<'_>| encode_config(&Pem::new("CERTIFICATE", root.as_ref()), form);
        self.roots.iter().map(text).collect()
    }

    /// Whether `other` signs with the same certificate, and makes the same chains and roots trusted.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        (&self.certificate, &self.intermediates, &self.roots)
            == (&other.certificate, &other.intermediates, &other.roots)
    }

    /// How the roots stand, in the bundle's order.
    pub(crate) fn root_standings(&self) -> Vec<RootStanding> {
        let standing = |root: &CertificateDer<'static>| {
            let parsed = parse(root).ok()?;
            Some(RootStanding {
                serial: serial(&parsed),
                not_after: system_time(parsed.validity().not_after),
            })
        };
        self.roots.iter().filter_map(standing).collect()
    }

    /// The trust domain whose identities are signed.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Makes a key and signs a TLS server certificate for it, for `names` and `ttl` or until the CA's own end. Names no
    /// workload.
    pub(crate) fn sign_server(&self, names: Vec<SanType>, ttl: Duration) -> Result<ServerCert, IssueError> {
        let mut key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(IssueError::Request)?;
        let not_after = self.end(ttl)?;
        let params = self.leaf(names, vec![ExtendedKeyUsagePurpose::ServerAuth], not_after);
        let leaf = params.signed_by(&key, &self.issuer).map_err(IssueError::Signing)?;
        let private = PrivateKey::from(PrivateKeyDer::Pkcs8(key.serialize_der().into()));
        key.zeroize();
        Ok(ServerCert { chain: self.chain(leaf.der()), key: private, not_after })
    }

    /// Signs a certificate for the identity and the key of `request`, for `ttl` or until the CA's own end. Identities of other
    /// trust domains are refused.
    pub(crate) fn sign(&self, request: &CheckedRequest, ttl: Duration) -> Result<Issued, IssueError> {
        let id = &request.id;
        if id.trust_domain() != &self.trust_domain {
            return Err(IssueError::Refused(format!(
                "{id} is not in this CA's trust domain {}",
                self.trust_domain
            )));
        }
        let not_after = self.end(ttl)?;
        let uri = id.to_string().try_into().map_err(IssueError::Signing)?;
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let params = self.leaf(vec![SanType::URI(uri)], usages, not_after);
        let key = SubjectPublicKeyInfo::from_der(&request.public_key).map_err(IssueError::Signing)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(IssueError::Signing)?;
        let chain = self.chain(leaf.der());
        Ok(Issued { chain, roots: self.roots.clone(), key: None })
    }

    /// Signs what the key store asks for, if the request says the same.
    pub(super) fn answer(&self, csr: &Csr) -> Result<Issued, IssueError> {
        let request =
            CheckedRequest::from_der(&csr.der).map_err(|fault| IssueError::Refused(fault.to_string()))?;
        match request.id == csr.id {
            true => self.sign(&request, csr.ttl),
            false => Err(IssueError::Refused(format!(
                "the certificate request is for {}, not for {}",
                request.id, csr.id
            ))),
        }
    }

    /// When a certificate of this lifetime ends; an error if that is no time.
    fn end(&self, ttl: Duration) -> Result<SystemTime, IssueError> {
        let now = self.clock.now();
        let not_after = now.checked_add(ttl).unwrap_or(self.not_after).min(self.not_after);
        if not_after <= now {
            return Err(IssueError::Refused(match ttl.is_zero() {
                true => "a lifetime of nothing was asked for".into(),
                false => "the CA certificate has expired; replace the CA".into(),
            }));
        }
        Ok(not_after)
    }

    fn leaf(
        &self,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        not_after: SystemTime,
    ) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.is_ca = IsCa::ExplicitNoCa;
        params.serial_number = Some(root::random_serial());
        params.use_authority_key_identifier_extension = true;
        params.not_before = OffsetDateTime::from((self.clock.now() - BACKDATE).max(self.not_before));
        params.not_after = OffsetDateTime::from(not_after);
        params
    }

    fn chain(&self, leaf: &CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        std::iter::once(leaf.clone()).chain(self.intermediates.iter().cloned()).collect()
    }

    /// The roots that those who believe this CA trust.
    pub(crate) fn trust(&self) -> TrustBundle {
        TrustBundle { roots: self.roots.clone() }
    }

    fn load(
        dir: &Path,
        files: &CaFiles,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        let bad =
            |file: &str, problem: String, advice| CaError::Content { path: dir.join(file), problem, advice };
        let (ca_cert, ca_key, cert_chain) =
            (files.layout.ca_cert, files.layout.ca_key, files.layout.cert_chain);
        let ca = certificates(dir, ca_cert, &files.ca_cert)?.swap_remove(0);
        let chain = certificates(dir, cert_chain, &files.cert_chain)?;
        let roots = certificates(dir, files.layout.root_cert, &files.root_cert)?;
        let key = PrivateKeyDer::from_pem_slice(&files.ca_key)
            .map_err(|error| error.to_string())
            .and_then(|key| KeyPair::try_from(&key).map_err(|error| error.to_string()))
            .map_err(|error| bad(ca_key, format!("no usable private key: {error}"), ADVICE_KEY))?;

        let parsed = parse(&ca).map_err(|fault| bad(ca_cert, fault.to_string(), ADVICE_PEM))?;
        if !parsed.is_ca() {
            return Err(bad(ca_cert, "not a CA certificate (basicConstraints)".into(), ADVICE_PEM));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(bad(ca_key, format!("does not belong to {ca_cert}"), ADVICE_KEY));
        }
        let (not_before, not_after) =
            (system_time(parsed.validity().not_before), system_time(parsed.validity().not_after));
        let now = clock.now();
        if not_after <= now {
            let end = parsed.validity().not_after;
            return Err(bad(ca_cert, format!("expired at {end}"), ADVICE_EXPIRED));
        }
        if not_before > now {
            let start = parsed.validity().not_before;
            return Err(bad(ca_cert, format!("not valid before {start}"), "set this node's clock"));
        }
        let own = format!("spiffe://{trust_domain}");
        let uris = uri_names(&parsed).map_err(|fault| bad(ca_cert, fault.to_string(), ADVICE_PEM))?;
        if let Some(other) = uris.iter().find(|uri| uri.starts_with("spiffe://") && **uri != own) {
            let problem = format!("the CA of another trust domain, {other:?}, not of {own}");
            return Err(bad(ca_cert, problem, "set the trust domain, or give another CA directory"));
        }
        if !chain.contains(&ca) && !roots.contains(&ca) {
            return Err(bad(cert_chain, format!("does not hold {ca_cert}"), ADVICE_CHAIN));
        }
        let intermediates = chain.into_iter().filter(|certificate| !roots.contains(certificate)).collect();
        let issuer = rcgen::Issuer::from_ca_cert_der(&ca, key)
            .map_err(|error| bad(ca_cert, error.to_string(), ADVICE_PEM))?;
        Ok(Self { trust_domain, clock, issuer, certificate: ca, not_before, not_after, intermediates, roots })
    }

    /// Signs one certificate for nobody and verifies it as a peer would, so that files that do not fit together are
    /// found at start and not on the first connection.
    fn try_out(&self, roots: &Path) -> Result<(), CaError> {
        let trial = || {
            let id = SpiffeId::new(self.trust_domain.clone(), "ambit-system", "self-test")
                .map_err(|error| IssueError::Refused(error.to_string()))?;
            let pending = PendingKey::generate(id, BACKDATE).map_err(IssueError::Request)?;
            let issued = self.answer(&pending.csr)?;
            Svid::accept(pending, issued, self.clock.now())
        };
        trial().map(drop).map_err(|error: IssueError| CaError::Content {
            path: roots.to_owned(),
            problem: format!("a certificate signed with this CA would not be believed: {error}"),
            advice: ADVICE_CHAIN,
        })
    }
}

impl Issuer for BuiltinCa {
    fn name(&self) -> &str {
        "builtin"
    }

    fn issue(&self, csr: Csr) -> IssueFuture<'_> {
        Box::pin(future::ready(self.answer(&csr)))
    }
}

const ADVICE_PEM: &str = "restore the file, or empty the directory to have a new CA made";
const ADVICE_KEY: &str = "restore the unencrypted PEM key that belongs to ca-cert.pem";
const ADVICE_CHAIN: &str =
    "it must hold the certificates from ca-cert.pem up to a root that is in root-cert.pem";
const ADVICE_EXPIRED: &str =
    "put a new CA in its place, with the old root kept in root-cert.pem while old certificates live";

/// All certificates of a PEM file; at least one.
fn certificates(dir: &Path, file: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let bad = |problem| CaError::Content { path: dir.join(file), problem, advice: ADVICE_PEM };
    let certificates = pem::certificates(text).map_err(bad)?;
    match certificates.iter().find_map(|certificate| parse(certificate).err()) {
        Some(fault) => Err(bad(fault.to_string())),
        None => Ok(certificates),
    }
}

#[cfg(test)]
mod tests;
