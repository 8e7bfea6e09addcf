//! What DestinationRules demand of connections: their bounds, and TLS that the agent speaks for the application.
//!
//! Promises that what is to go under TLS never goes otherwise: a certificate or list that cannot be had refuses the connection.

mod call;
mod outside;

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use ambit_core::{
    discovery::{ClientCertificate, ClientRule, ClientTls, Origination, Roots, TlsSecret},
    model::{ObjectName, Workload},
    reason::{Reason, Refusal},
};
use tokio::sync::Mutex as AsyncMutex;

pub(super) use call::resolve;

use super::names::Names;
use crate::{
    discovery::World,
    files,
    tunnel::{Outside, OutsideTls},
};

/// The longest file of certificates, keys or lists.
const MAX_FILE: u64 = 4 << 20;
/// How long what was made of files and Secrets is used before it is made anew: files are not watched.
const KEPT: Duration = Duration::from_secs(60);
/// Destinations with TLS that are kept ready.
const MAX_WAYS: usize = 1_024;

#[derive(Default)]
pub(super) struct Egress {
    /// The folder with a folder for each namespace, in which the files are that its pods' rules name.
    files: OnceLock<PathBuf>,
    pub(super) names: Names,
    ways: Mutex<HashMap<WayKey, Arc<AsyncMutex<Option<Ready>>>>>,
    open: Arc<Mutex<HashMap<OpenKey, u32>>>,
}

/// The rule, the client's namespace, the host, and whether HTTP/2 is spoken.
type WayKey = (ObjectName, Arc<str>, Arc<str>, bool);
/// The client, the destination's host and port.
type OpenKey = (Arc<str>, Arc<str>, u16);

/// A way to connect that was made of these.
struct Ready {
    tls: Arc<Origination>,
    names: Vec<Arc<str>>,
    secrets: [Option<Arc<TlsSecret>>; 2],
    made: Instant,
    outside: Outside,
}

/// A place among the connections that a rule allows. Dropping it frees it.
#[derive(Debug)]
pub(super) struct Slot {
    open: Arc<Mutex<HashMap<OpenKey, u32>>>,
    key: OpenKey,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.key);
            }
        }
    }
}

impl Egress {
    pub(super) fn set_files(&self, folder: PathBuf) {
        // Whoever wires it does so once.
        let _: Result<(), PathBuf> = self.files.set(folder);
    }

    /// A place for one more connection of the pod, where a rule bounds their number.
    pub(super) fn slot(&self, pod: &Arc<str>, rule: &ClientRule, port: u16) -> Result<Option<Slot>, Refusal> {
        let Some(most) = rule.settings.pool.max_connections else { return Ok(None) };
        let key = (pod.clone(), rule.host.clone(), port);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(key.clone()).or_default();
        if *count >= most {
            let text = format!(
                "the pod has {count} connections to {}:{port}, as many as DestinationRule {} allows (maxConnections)",
                rule.host, rule.settings.rule
            );
            return Err(Refusal::new(Reason::ConnectionLimit, text));
        }
        *count += 1;
        drop(open);
        Ok(Some(Slot { open: self.open.clone(), key }))
    }

    /// How to speak TLS to the destination, if the agent is to.
    pub(super) async fn outside(
        &self,
        world: &World,
        client: &Workload,
        rule: &ClientRule,
        meshed: bool,
    ) -> Result<Option<Outside>, Refusal> {
        let name = &rule.settings.rule;
        match &rule.settings.tls {
            ClientTls::Unset | ClientTls::Disable => Ok(None),
            ClientTls::IstioMutual if meshed => Ok(None),
            ClientTls::IstioMutual => Err(Refusal::new(
                Reason::MtlsUnavailable,
                format!(
                    "DestinationRule {name} demands the mesh's mutual TLS (ISTIO_MUTUAL) for {}, and the endpoint is not in the mesh; \
                     bring it into the mesh, or give this host a rule of its own with mode DISABLE or SIMPLE",
                    rule.host
                ),
            )),
            ClientTls::Unusable(why) => Err(Refusal::new(Reason::RuleUnusable, why.clone())),
            ClientTls::Originate(tls) => {
                self.ready(world, client, rule, tls).await.map(Some).map_err(|why| {
                    let text = format!("DestinationRule {name} wants TLS to {}: {why}", rule.host);
                    Refusal::new(Reason::CredentialsUnavailable, text)
                })
            }
        }
    }

    async fn ready(
        &self,
        world: &World,
        client: &Workload,
        rule: &ClientRule,
        tls: &Arc<Origination>,
    ) -> Result<Outside, String> {
        let own = client.name.namespace.clone();
        let place = self.place((rule.settings.rule.clone(), own.clone(), rule.host.clone(), rule.http2));
        let mut place = place.lock().await;
        let secrets =
            [roots_secret(tls), client_secret(tls)].map(|name| Some((name?, world.mesh.secret(name?))));
        for (name, secret) in secrets.iter().flatten() {
            if secret.is_none() {
                return Err(format!(
                    "Secret {name} does not exist, or the agent may not read it (ambit status tells which)"
                ));
            }
        }
        let secrets = secrets.map(|secret| secret.and_then(|(_, secret)| secret.cloned()));
        let same = |ready: &&Ready| {
            ready.made.elapsed() < KEPT
                && ready.tls == *tls
                && ready.names == rule.names
                && ready.secrets == secrets
        };
        if let Some(ready) = place.as_ref().filter(same) {
            return Ok(ready.outside.clone());
        }
        let folder = self.files.get().map(|folder| folder.join(&*own));
        let (wanted, names, host) = (tls.clone(), rule.names.clone(), rule.host.clone());
        let (held, http2) = (secrets.clone(), rule.http2);
        let made = tokio::task::spawn_blocking(move || {
            make(&wanted, &names, &host, http2, &held, folder.as_deref())
        });
        let outside = made.await.map_err(|error| error.to_string())??;
        if tls.insecure {
            tracing::warn!(
                rule = %rule.settings.rule,
                host = %rule.host,
                "servers are not verified: a DestinationRule says insecureSkipVerify"
            );
        }
        let (tls, names, made) = (tls.clone(), rule.names.clone(), Instant::now());
        *place = Some(Ready { tls, names, secrets, made, outside: outside.clone() });
        Ok(outside)
    }

    fn place(&self, key: WayKey) -> Arc<AsyncMutex<Option<Ready>>> {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        if ways.len() >= MAX_WAYS && !ways.contains_key(&key) {
            ways.clear();
        }
        ways.entry(key).or_default().clone()
    }
}

fn roots_secret(tls: &Origination) -> Option<&ObjectName> {
    match &tls.roots {
        Roots::Secret(name) => Some(name),
        _ => None,
    }
}

fn client_secret(tls: &Origination) -> Option<&ObjectName> {
    match &tls.client {
        Some(ClientCertificate::Secret(name)) => Some(name),
        _ => None,
    }
}

/// Reads what is named, and makes of it how to connect. The error is the end of a sentence.
fn make(
    tls: &Origination,
    names: &[Arc<str>],
    host: &Arc<str>,
    http2: bool,
    secrets: &[Option<Arc<TlsSecret>>; 2],
    folder: Option<&Path>,
) -> Result<Outside, String> {
    let read = |path: &str| file(folder, path);
    let [of_roots, of_client] = secrets;
    let roots = match &tls.roots {
        Roots::File(path) => Some(read(path)?.to_vec()),
        Roots::Secret(_) => of_roots.as_ref().and_then(|secret| Some(secret.roots.as_ref()?.to_vec())),
        Roots::System | Roots::Unverified => None,
    };
    let client = match &tls.client {
        None => None,
        Some(ClientCertificate::Files(certificate, key)) => Some((read(certificate)?, read(key)?)),
        Some(ClientCertificate::Secret(name)) => {
            let part = |part: fn(&TlsSecret) -> &Option<Arc<[u8]>>, key: &str| {
                let bytes = of_client.as_ref().and_then(|secret| part(secret).as_ref());
                let bytes = bytes.ok_or_else(|| format!("Secret {name} has no {key}"))?;
                Ok::<_, String>(zeroize::Zeroizing::new(bytes.to_vec()))
            };
            Some((part(|secret| &secret.certificate, "tls.crt")?, part(|secret| &secret.key, "tls.key")?))
        }
    };
    let revoked = match &tls.crl {
        Some(path) => Some(read(path)?.to_vec()),
        None => of_roots.as_ref().and_then(|secret| Some(secret.crl.as_ref()?.to_vec())),
    };
    let server_name = tls.sni.as_ref().unwrap_or(host);
    let own = [server_name.clone()];
    let names = [&tls.names[..], names].into_iter().find(|names| !names.is_empty()).unwrap_or(&own);
    let outside = Outside::new(&OutsideTls {
        server_name,
        names,
        roots: roots.as_deref(),
        client: client.as_ref().map(|(certificate, key)| (&certificate[..], &key[..])),
        revoked: revoked.as_deref(),
        unverified: tls.insecure,
        alpn: http2.then_some("h2"),
    });
    outside.map_err(|error| error.to_string())
}

/// A file that a rule names, which is in the folder of the client's namespace and nowhere else: a rule is written by a tenant, and
/// the agent may read more than that one may.
fn file(folder: Option<&Path>, path: &str) -> Result<zeroize::Zeroizing<Vec<u8>>, String> {
    let folder = folder.ok_or_else(|| {
        format!("{path:?} cannot be read: the agent has no folder for such files (--egress-files); a Secret needs none")
    })?;
    let mut within = folder.to_owned();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => within.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(format!("{path:?} leads out of the namespace's folder"));
            }
        }
    }
    files::read(&within, MAX_FILE).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
