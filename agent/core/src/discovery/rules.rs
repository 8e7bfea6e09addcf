//! Which DestinationRule holds for a connection.
//!
//! Promises Istio's order: the client's namespace, then that of the service, then the root namespace, and in each the narrowest host;
//! a rule that selects the client goes before one for all, and of equals the oldest with a traffic policy counts.

use std::{cmp::Reverse, ops::Bound, sync::Arc};

use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

use super::destination_rule::{ClientSettings, DestinationRule, HostPattern};
use crate::model::{ObjectName, Workload};

/// All rules. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    by_name: RedBlackTreeMapSync<ObjectName, Arc<DestinationRule>>,
    /// The rules that make connections other ones than they would be, by host: how many.
    acting: HashTrieMapSync<HostPattern, usize>,
}

/// A destination as rules see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// The namespace of the service or the entry.
    pub(super) namespace: &'a str,
    /// In lower case.
    pub(super) host: &'a str,
    /// The port of the service.
    pub(super) port: u16,
}

impl Rules {
    /// The rule of that name becomes this, or goes. Answers with the hosts that were and are spoken of.
    pub(super) fn put(&mut self, name: &ObjectName, rule: Option<Arc<DestinationRule>>) -> Vec<HostPattern> {
        let mut hosts = Vec::new();
        if let Some(before) = self.by_name.get(name).cloned() {
            self.by_name.remove_mut(name);
            if acts(&before) {
                let left = self.acting.get(&before.host).map_or(0, |count| count - 1);
                match left {
                    0 => self.acting.remove_mut(&before.host),
                    _ => {
                        self.acting.insert_mut(before.host.clone(), left);
                        true
                    }
                };
            }
            hosts.push(before.host.clone());
        }
        if let Some(rule) = rule {
            if acts(&rule) {
                let count = self.acting.get(&rule.host).copied().unwrap_or_default();
                self.acting.insert_mut(rule.host.clone(), count + 1);
            }
            hosts.push(rule.host.clone());
            self.by_name.insert_mut(name.clone(), rule);
        }
        hosts.dedup();
        hosts
    }

    /// All rules, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.by_name.values()
    }

    /// Whether no rule makes any connection another one than without rules.
    pub(super) fn are_idle(&self) -> bool {
        self.acting.is_empty()
    }

    /// Whether connections to `host` may be other ones for some client than without rules.
    pub(super) fn act_on(&self, host: &str) -> bool {
        !self.are_idle() && patterns(host).any(|pattern| self.acting.contains_key(&pattern))
    }

    /// What holds for a connection of `client`.
    pub(super) fn settings(
        &self,
        client: &Workload,
        target: Target<'_>,
        root: &str,
    ) -> Option<Arc<ClientSettings>> {
        if !self.act_on(target.host) {
            return None;
        }
        let own = &*client.name.namespace;
        let exported = |rule: &DestinationRule| rule.exported_to.includes(own);
        // Rules that are private to the root namespace are for its own clients; its others are the mesh's last word.
        let private = |rule: &DestinationRule| own != root || rule.exported_to != super::ExportTo::All;
        let found = self
            .narrowest(own, client, target.host, private)
            .or_else(|| self.narrowest(target.namespace, client, target.host, exported))
            .or_else(|| self.narrowest(root, client, target.host, exported))?;
        Some(Arc::clone(found.policy.as_ref()?.at(target.port)))
    }

    /// The rule of one namespace that counts.
    fn narrowest(
        &self,
        namespace: &str,
        client: &Workload,
        host: &str,
        counts: impl Fn(&DestinationRule) -> bool,
    ) -> Option<&Arc<DestinationRule>> {
        let selects = |rule: &DestinationRule| match &rule.selector {
            None => true,
            Some(selector) => {
                *client.name.namespace == *namespace
                    && selector.iter().all(|(key, value)| client.labels.get(key) == Some(value))
            }
        };
        self.of_namespace(namespace)
            .filter(|rule| rule.host.matches(host) && counts(rule) && selects(rule))
            .max_by_key(|rule| {
                let age = (rule.created.unwrap_or(i64::MAX), &rule.name);
                (rule.host.rank(), rule.selector.is_some(), rule.policy.is_some(), Reverse(age))
            })
    }

    fn of_namespace<'a>(
        &'a self,
        namespace: &str,
    ) -> impl Iterator<Item = &'a Arc<DestinationRule>> + use<'a> {
        let start = ObjectName::new(namespace, "");
        let namespace = Arc::clone(&start.namespace);
        self.by_name
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(move |(name, _)| name.namespace == namespace)
            .map(|(_, rule)| rule)
    }
}

fn acts(rule: &DestinationRule) -> bool {
    rule.policy.as_ref().is_some_and(super::TrafficPolicy::acts)
}

/// Every pattern that matches a host.
fn patterns(host: &str) -> impl Iterator<Item = HostPattern> + '_ {
    let dots = host
        .match_indices('.')
        .filter(|(at, _)| *at > 0)
        .map(|(at, _)| HostPattern::Suffix(host[at..].into()));
    [HostPattern::Exact(host.into()), HostPattern::Suffix("".into())].into_iter().chain(dots)
}

#[cfg(test)]
mod tests;
