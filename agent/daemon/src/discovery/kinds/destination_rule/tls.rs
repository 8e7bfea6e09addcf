//! `tls` of a traffic policy.

use std::sync::Arc;

use ambit_core::{
    discovery::{ClientCertificate, ClientTls, Origination, Roots},
    model::ObjectName,
};

use super::{Of, Told};
use crate::discovery::kinds::{
    FieldError,
    fields::{choice, cut, object_name, present},
    wire,
};

wire::objects! {
    Tls {
        mode: Option<String>,
        client_certificate: Option<String>,
        private_key: Option<String>,
        ca_certificates: Option<String>,
        credential_name: Option<String>,
        subject_alt_names: Option<Vec<String>>,
        sni: Option<String>,
        insecure_skip_verify: Option<bool>,
        ca_crl: Option<String>,
    }
}

pub(super) const FIELDS: [&str; 9] = [
    "mode",
    "clientCertificate",
    "privateKey",
    "caCertificates",
    "credentialName",
    "subjectAltNames",
    "sni",
    "insecureSkipVerify",
    "caCrl",
];

/// Names that a certificate may have; more are not taken.
const MAX_NAMES: usize = 256;

impl Tls {
    pub(super) fn read(self, path: &str, of: &Of<'_>, told: &mut Told) -> Result<ClientTls, FieldError> {
        const MODES: [&str; 4] = ["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"];
        let mode = MODES[choice(&format!("{path}.mode"), self.mode.clone(), MODES)?];
        match mode {
            "DISABLE" => Ok(ClientTls::Disable),
            "ISTIO_MUTUAL" => match self.stated() {
                Some(field) => Err(FieldError::new(
                    format!("{path}.{field}"),
                    "must be empty with mode ISTIO_MUTUAL: certificates are the mesh's",
                )),
                None => Ok(ClientTls::IstioMutual),
            },
            _ => self.origination(mode == "MUTUAL", path, of, told),
        }
    }

    /// The first field that is not the mode and says something.
    fn stated(&self) -> Option<&'static str> {
        let text = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
        [
            ("clientCertificate", text(&self.client_certificate)),
            ("privateKey", text(&self.private_key)),
            ("caCertificates", text(&self.ca_certificates)),
            ("credentialName", text(&self.credential_name)),
            ("sni", text(&self.sni)),
            ("caCrl", text(&self.ca_crl)),
            ("subjectAltNames", self.subject_alt_names.as_ref().is_some_and(|names| !names.is_empty())),
            ("insecureSkipVerify", self.insecure_skip_verify == Some(true)),
        ]
        .into_iter()
        .find_map(|(field, there)| there.then_some(field))
    }

    fn origination(
        self,
        mutual: bool,
        path: &str,
        of: &Of<'_>,
        told: &mut Told,
    ) -> Result<ClientTls, FieldError> {
        let within = |field: &str| format!("{path}.{field}");
        let insecure = self.insecure_skip_verify == Some(true);
        let names = names(self.subject_alt_names, &within("subjectAltNames"))?;
        let [certificate, key, roots, crl] =
            [self.client_certificate, self.private_key, self.ca_certificates, self.ca_crl].map(present);
        let secret = secret(self.credential_name, &within("credentialName"), of)?;
        let files = certificate.is_some() || key.is_some() || roots.is_some();
        if secret.is_some() && files {
            return Err(FieldError::new(within("credentialName"), "excludes files of certificates and keys"));
        }
        if insecure && (roots.is_some() || !names.is_empty()) {
            return Err(FieldError::new(
                within("insecureSkipVerify"),
                "excludes caCertificates and subjectAltNames: nothing would be verified by them",
            ));
        }
        let client = match (mutual, &secret, certificate, key) {
            (false, ..) => None,
            (true, Some(secret), ..) => Some(ClientCertificate::Secret(secret.clone())),
            (true, None, Some(certificate), Some(key)) => {
                Some(ClientCertificate::Files(certificate.into(), key.into()))
            }
            (true, None, Some(_), None) => {
                return Err(FieldError::new(within("privateKey"), "is missing, which MUTUAL needs"));
            }
            (true, None, None, _) => {
                let message = "is missing: MUTUAL needs clientCertificate and privateKey, or credentialName";
                return Err(FieldError::new(within("clientCertificate"), message));
            }
        };
        if insecure {
            told.loud.push(format!(
                "{path}.insecureSkipVerify: servers are NOT verified, anybody on the way can read and change what is sent"
            ));
        }
        let roots = match (insecure, roots.as_deref(), secret) {
            (true, ..) => Roots::Unverified,
            (false, Some("system") | None, None) => Roots::System,
            (false, Some(file), _) => Roots::File(file.into()),
            (false, None, Some(secret)) => Roots::Secret(secret),
        };
        Ok(ClientTls::Originate(Arc::new(Origination {
            sni: server_name(self.sni, &within("sni"))?,
            names,
            roots,
            client,
            crl: crl.map(Into::into),
            insecure,
        })))
    }
}

fn names(list: Option<Vec<String>>, path: &str) -> Result<Vec<Arc<str>>, FieldError> {
    let list = list.unwrap_or_default();
    if list.len() > MAX_NAMES {
        return Err(FieldError::new(path, format_args!("has more than {MAX_NAMES} names")));
    }
    match list.iter().position(String::is_empty) {
        Some(at) => Err(FieldError::new(format!("{path}[{at}]"), "is empty")),
        None => Ok(list.into_iter().map(Into::into).collect()),
    }
}

fn server_name(text: Option<String>, path: &str) -> Result<Option<Arc<str>>, FieldError> {
    let Some(text) = present(text) else { return Ok(None) };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if text.len() > 253 || !text.chars().all(legal) {
        return Err(FieldError::new(path, format_args!("{:?} is no server name", cut(&text))));
    }
    Ok(Some(text.into()))
}

/// A Secret of the rule's own namespace. A rule for all clients would lend its key to those of other namespaces.
fn secret(name: Option<String>, path: &str, of: &Of<'_>) -> Result<Option<ObjectName>, FieldError> {
    let Some(name) = present(name) else { return Ok(None) };
    if !of.selects {
        let message = "takes effect only in a rule with a workloadSelector, as in Istio's sidecars";
        return Err(FieldError::new(path, message));
    }
    let name = name.strip_prefix("kubernetes://").unwrap_or(&name).to_owned();
    Ok(Some(ObjectName::new(Arc::clone(&of.rule.namespace), object_name(path, Some(name))?)))
}
