//! Where the names of ServiceEntries lead, by the machine's own resolver.
//!
//! Promises that a name is asked for once however many connections want it, that answers are kept for a while and within bounds, and
//! that a resolver which is away changes nothing for names that it has answered lately.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_core::{
    discovery::Named,
    reason::{Reason, Refusal},
};
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore},
    time::Instant,
};

/// How long an answer counts: the resolver does not tell for how long it is good.
const FRESH: Duration = Duration::from_secs(30);
/// How long it counts while the resolver has no other.
const STALE: Duration = Duration::from_secs(600);
/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Questions at a time: each takes a thread.
const AT_A_TIME: usize = 16;
/// Names that are remembered.
const MAX_NAMES: usize = 1_024;
/// Addresses of one name that are.
const MAX_ADDRESSES: usize = 64;

/// What is known of a name; locked while it is asked for.
type Held = Arc<AsyncMutex<Option<Answer>>>;

pub(super) struct Names {
    known: Mutex<HashMap<Arc<str>, Held>>,
    questions: Semaphore,
}

#[derive(Clone)]
struct Answer {
    at: Instant,
    addresses: Arc<[IpAddr]>,
}

impl Default for Names {
    fn default() -> Self {
        Self { known: Mutex::default(), questions: Semaphore::new(AT_A_TIME) }
    }
}

impl Names {
    /// An address and port of the destination, of the family of `source`, and none of those that were `tried`.
    pub(super) async fn resolve(
        &self,
        named: &Named,
        source: IpAddr,
        random: u64,
        tried: &[SocketAddr],
    ) -> Result<SocketAddr, Refusal> {
        let mut found = Vec::new();
        let mut failed = None;
        for (name, port) in &named.names {
            match self.addresses(name).await {
                Ok(addresses) => found.extend(addresses.iter().map(|ip| SocketAddr::new(*ip, *port))),
                Err(why) => failed = Some((name, why)),
            }
        }
        found.retain(|at| at.is_ipv4() == source.is_ipv4());
        if named.first_only {
            found.truncate(1);
        }
        found.retain(|at| !tried.contains(at));
        let at = random.checked_rem(found.len() as u64).unwrap_or(0) as usize;
        found.get(at).copied().ok_or_else(|| {
            let text = match failed {
                Some((name, why)) => format!("{name} cannot be resolved: {why}"),
                None => format!("{} leads to no address of the family of {source}", named.service.host),
            };
            Refusal::new(Reason::NameUnresolved, text)
        })
    }

    async fn addresses(&self, name: &Arc<str>) -> Result<Arc<[IpAddr]>, String> {
        let known = self.entry(name);
        // Whoever comes meanwhile waits for the same answer.
        let mut known = known.lock().await;
        if let Some(answer) = known.as_ref().filter(|answer| answer.at.elapsed() < FRESH) {
            return Ok(answer.addresses.clone());
        }
        match self.ask(name).await {
            Ok(addresses) => {
                *known = Some(Answer { at: Instant::now(), addresses: addresses.clone() });
                Ok(addresses)
            }
            Err(why) => match known.as_ref().filter(|answer| answer.at.elapsed() < STALE) {
                Some(answer) => {
                    tracing::debug!(%name, why, "a name cannot be resolved; its last addresses are used");
                    Ok(answer.addresses.clone())
                }
                None => Err(why),
            },
        }
    }

    async fn ask(&self, name: &str) -> Result<Arc<[IpAddr]>, String> {
        let _turn = self.questions.acquire().await.map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(LIMIT, tokio::net::lookup_host((name, 0))).await;
        let answer =
            answer.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())?;
        let usable = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast();
        let mut addresses = Vec::new();
        for ip in answer.map(|at| at.ip().to_canonical()).filter(usable) {
            if !addresses.contains(&ip) && addresses.len() < MAX_ADDRESSES {
                addresses.push(ip);
            }
        }
        match addresses.is_empty() {
            true => Err("no address that could be another host's".to_owned()),
            false => Ok(addresses.into()),
        }
    }

    fn entry(&self, name: &Arc<str>) -> Held {
        // A panic cannot leave the map half changed.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_NAMES && !known.contains_key(name) {
            known.retain(|_, answer| {
                answer.try_lock().is_err()
                    || answer
                        .try_lock()
                        .is_ok_and(|held| held.as_ref().is_some_and(|held| held.at.elapsed() < FRESH))
            });
            if known.len() >= MAX_NAMES {
                known.clear();
            }
        }
        known.entry(name.clone()).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambit_core::model::{ObjectName, ServiceName};

    fn named(names: &[(&str, u16)], first_only: bool) -> Named {
        Named {
            names: names.iter().map(|(name, port)| ((*name).into(), *port)).collect(),
            first_only,
            service: ServiceName { name: ObjectName::new("shop", "api"), host: "api.example.com".into() },
            rule: None,
            identities: None,
        }
    }

    #[tokio::test]
    async fn an_address_of_the_clients_family_is_found() {
        let (names, v4) = (Names::default(), IpAddr::from([198, 18, 0, 1]));
        let both = named(&[("fd00:198::7", 443), ("198.18.0.7", 8443)], false);
        assert_eq!(names.resolve(&both, v4, 7, &[]).await.unwrap(), "198.18.0.7:8443".parse().unwrap());
        let refused = names.resolve(&named(&[("127.0.0.1", 443)], true), v4, 0, &[]).await.unwrap_err();
        assert_eq!(refused.reason, Reason::NameUnresolved);
    }

    #[tokio::test]
    async fn only_so_many_names_are_remembered() {
        let names = Names::default();
        for number in 0..2 * MAX_NAMES {
            drop(names.entry(&number.to_string().into()));
        }
        assert!(names.known.lock().unwrap().len() <= MAX_NAMES);
    }
}
