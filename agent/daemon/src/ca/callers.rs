//! Who may ask: the callers that a file lists, and the service accounts of a cluster.
//!
//! Leaves to the TLS library whether a client certificate is genuine.

mod entry;
mod file;

use std::{net::IpAddr, path::Path, sync::Arc};

use ambit_core::model::{SpiffeId, TrustDomain};

use self::{
    entry::{Entry, sha256},
    file::CallersFile,
};
use super::{CaServiceError, kubernetes::Cluster, refusal::Refusal};

/// No token is longer.
pub(crate) const MAX_TOKEN: usize = 16 * 1024;

/// The callers of this CA.
#[derive(Debug)]
pub(crate) struct Callers {
    file: Option<Arc<CallersFile>>,
    cluster: Option<Arc<Cluster>>,
}

/// One who has proved to be a caller.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Listed in the file.
    Listed(Arc<Entry>),
    /// The agent of a node of the cluster.
    Agent {
        /// The node that its pod runs on.
        node: String,
        /// Who knows what else runs there.
        cluster: Arc<Cluster>,
    },
    /// A service account that may have its own identity.
    Account {
        /// `namespace/name`.
        name: String,
        /// That identity.
        identity: SpiffeId,
    },
}

impl Callers {
    /// Reads the file for the first time; `cluster` vouches for tokens that are not in it.
    pub(crate) fn open(
        path: Option<&Path>,
        cluster: Option<Arc<Cluster>>,
        trust_domain: &TrustDomain,
    ) -> Result<Self, CaServiceError> {
        let file = path.map(|path| CallersFile::open(path, trust_domain)).transpose()?;
        Ok(Self { file: file.map(Arc::new), cluster })
    }

    /// Takes the file over whenever it has changed and is good. Never ends, if there is one.
    pub(crate) async fn follow(&self) {
        if let Some(file) = &self.file {
            file.clone().follow().await;
        }
    }

    /// The caller at `from` that a token or a verified client certificate belongs to. A token that is given must be good,
    /// whatever certificate comes with it.
    pub(crate) async fn authenticate(
        &self,
        token: Option<&str>,
        certificate: Option<&SpiffeId>,
        from: IpAddr,
        trust_domain: &TrustDomain,
    ) -> Result<Caller, Refusal> {
        let listed = match &self.file {
            Some(file) => file.find(token, certificate).map(Caller::Listed),
            None if token.is_some() => Err(Refusal::UnknownCaller("token")),
            None if certificate.is_some() => Err(Refusal::UnknownCaller("client certificate")),
            None => Err(Refusal::NoCredentials),
        };
        let (Err(Refusal::UnknownCaller(_)), Some(token), Some(cluster)) = (&listed, token, &self.cluster)
        else {
            return listed;
        };
        let account = cluster.review(token, sha256(token.as_bytes()), from).await?;
        if let Some(node) = account.node {
            return Ok(Caller::Agent { node, cluster: cluster.clone() });
        }
        let identity = SpiffeId::new(trust_domain.clone(), &account.namespace, &account.name)
            .map_err(|_| Refusal::UnknownCaller("token"))?;
        Ok(Caller::Account { name: format!("{}/{}", account.namespace, account.name), identity })
    }
}

impl Caller {
    /// The node that the caller serves; the account's name for one that stands for itself.
    pub(crate) fn node(&self) -> &str {
        match self {
            Self::Listed(entry) => entry.node(),
            Self::Agent { node, .. } => node,
            Self::Account { name, .. } => name,
        }
    }

    /// What the caller proved itself with, in a word.
    pub(crate) fn proof(&self) -> &'static str {
        match self {
            Self::Listed(entry) => entry.proof().as_str(),
            Self::Agent { .. } => "node-account",
            Self::Account { .. } => "service-account",
        }
    }

    /// Whether `id`, of this CA's trust domain, runs on the caller's node.
    pub(crate) async fn authorize(&self, id: &SpiffeId) -> Result<(), Refusal> {
        let allowed = match self {
            Self::Listed(entry) => entry.lists(id),
            Self::Agent { node, cluster } => cluster.runs_on(node, id).await?,
            Self::Account { identity, .. } => identity == id,
        };
        match allowed {
            true => Ok(()),
            false => Err(Refusal::NotOnNode { id: id.clone(), node: self.node().to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests;
