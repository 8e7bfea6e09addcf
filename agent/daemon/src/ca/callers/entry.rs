//! One caller of the file: how it proves itself, and which identities run on its node.
//!
//! Promises that no token is kept, nor named by an error.

use std::collections::HashSet;

use ambit_core::model::{SpiffeId, TrustDomain};
use aws_lc_rs::digest;
use data_encoding::HEXLOWER_PERMISSIVE;
use serde::Deserialize;
use zeroize::Zeroize as _;

use super::MAX_TOKEN;

/// A shorter token can be guessed.
pub(super) const MIN_TOKEN: usize = 20;

/// One caller, checked.
#[derive(Debug)]
pub(crate) struct Entry {
    node: String,
    proof: Proof,
    identities: HashSet<SpiffeId>,
    namespaces: HashSet<String>,
    service_accounts: HashSet<(String, String)>,
}

/// What a caller proves itself with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Proof {
    /// SHA-256 of a bearer token.
    Token([u8; 32]),
    /// The identity in a client certificate.
    Certificate(SpiffeId),
}

/// One caller as the file has it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Line {
    node: String,
    token: Option<String>,
    token_sha256: Option<String>,
    certificate: Option<String>,
    #[serde(default)]
    identities: Vec<String>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default)]
    service_accounts: Vec<String>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl Entry {
    /// What `line` says of a caller; the error names the field, and no token.
    pub(super) fn read(line: &Line, trust_domain: &TrustDomain) -> Result<Self, String> {
        if line.node.is_empty()
            || line.node.len() > 253
            || !line.node.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err("node: not the name of a node".into());
        }
        let own = |text: &str, field: &str| -> Result<SpiffeId, String> {
            let id: SpiffeId = text.parse().map_err(|error| format!("{field}: {error}"))?;
            match id.trust_domain() == trust_domain {
                true => Ok(id),
                false => Err(format!("{field}: {id} is not in the trust domain {trust_domain}")),
            }
        };
        let namespace_of = |namespace: &str, account: &str, field: &str| {
            SpiffeId::new(trust_domain.clone(), namespace, account)
                .map_err(|error| format!("{field}: {error}"))
        };
        let proof = match (&line.token, &line.token_sha256, &line.certificate) {
            (Some(token), None, None) => {
                if !(MIN_TOKEN..=MAX_TOKEN).contains(&token.len())
                    || !token.bytes().all(|byte| byte.is_ascii_graphic())
                {
                    return Err(format!(
                        "token: must have {MIN_TOKEN} to {MAX_TOKEN} printable characters and no space"
                    ));
                }
                Proof::Token(sha256(token.as_bytes()))
            }
            (None, Some(hash), None) => {
                let hash =
                    HEXLOWER_PERMISSIVE.decode(hash.as_bytes()).ok().and_then(|hash| hash.try_into().ok());
                Proof::Token(hash.ok_or("token-sha256: must be 64 hexadecimal digits")?)
            }
            (None, None, Some(uri)) => Proof::Certificate(own(uri, "certificate")?),
            _ => return Err("must have exactly one of token, token-sha256, certificate".into()),
        };
        let mut entry = Entry {
            node: line.node.clone(),
            proof,
            identities: HashSet::new(),
            namespaces: HashSet::new(),
            service_accounts: HashSet::new(),
        };
        for uri in &line.identities {
            entry.identities.insert(own(uri, "identities")?);
        }
        for namespace in &line.namespaces {
            namespace_of(namespace, "default", "namespaces")?;
            entry.namespaces.insert(namespace.clone());
        }
        for account in &line.service_accounts {
            let (namespace, name) = account
                .split_once('/')
                .ok_or_else(|| format!("service-accounts: {account:?} is not NAMESPACE/NAME"))?;
            namespace_of(namespace, name, "service-accounts")?;
            entry.service_accounts.insert((namespace.to_owned(), name.to_owned()));
        }
        Ok(entry)
    }

    /// The node that the caller serves.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// What the caller proves itself with.
    pub(super) fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Whether `id` runs on the caller's node.
    pub(super) fn lists(&self, id: &SpiffeId) -> bool {
        let account = (id.namespace().to_owned(), id.service_account().to_owned());
        self.identities.contains(id)
            || self.namespaces.contains(id.namespace())
            || self.service_accounts.contains(&account)
    }
}

impl Proof {
    /// In a word, for the audit log.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::Certificate(_) => "certificate",
        }
    }
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}
