//! The AuthorizationPolicies in force, and which of them are for whom. Persistent: readers hold snapshots.

use std::{ops::Bound, sync::Arc};

use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

use super::{Action, Authorization, AuthorizationPolicy, Rehearsal, Target};
use crate::{
    model::{Labels, ObjectName},
    policy::{Doubt, Reach},
};

/// All of them, those of one namespace side by side.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct Authorizations {
    objects: RedBlackTreeMapSync<ObjectName, Arc<AuthorizationPolicy>>,
    /// The selectors of the services that policies are for, as far as they are known and have one.
    services: HashTrieMapSync<ObjectName, Labels>,
}

impl Authorizations {
    pub(in crate::policy) fn len(&self) -> usize {
        self.objects.size()
    }

    pub(in crate::policy) fn upsert(&mut self, root: &str, policy: Arc<AuthorizationPolicy>) -> Reach {
        let mut reach = self.take(root, &policy.name);
        self.extend(&mut reach, root, &policy);
        self.objects.insert_mut(policy.name.clone(), policy);
        reach
    }

    pub(in crate::policy) fn remove(&mut self, root: &str, name: &ObjectName) -> Reach {
        let services = self.objects.get(name).map(|policy| policy.services().collect::<Vec<_>>());
        let reach = self.take(root, name);
        for service in
            services.into_iter().flatten().filter(|service| !self.is_target(service)).collect::<Vec<_>>()
        {
            self.services.remove_mut(&service);
        }
        reach
    }

    /// A service has this selector now, or none.
    pub(in crate::policy) fn set_service(&mut self, name: &ObjectName, selector: Option<&Labels>) -> Reach {
        let mut reach = Reach::default();
        let selector = selector.filter(|selector| !selector.is_empty() && self.is_target(name));
        let before = self.services.get(name);
        if before == selector {
            return reach;
        }
        for selector in [before, selector].into_iter().flatten() {
            reach.select(&name.namespace, selector);
        }
        match selector {
            Some(selector) => self.services.insert_mut(name.clone(), selector.clone()),
            None => {
                self.services.remove_mut(name);
            }
        }
        reach
    }

    /// What is for a pod in `namespace` with these labels: in force, and to be rehearsed.
    pub(in crate::policy) fn compile(
        &self,
        root: &str,
        namespace: &str,
        labels: &Labels,
    ) -> (Authorization, Rehearsal) {
        let (rehearsed, enforced): (Vec<_>, Vec<_>) = self
            .for_pod(root, namespace, labels)
            .cloned()
            .partition(|policy| policy.dry_run || policy.action == Action::Audit);
        (Authorization::of(&enforced), Rehearsal::of(&enforced, rehearsed))
    }

    /// The policies for a pod in `namespace` with these labels, in force or not, those of the root namespace first.
    pub(in crate::policy) fn for_pod<'a>(
        &'a self,
        root: &str,
        namespace: &'a str,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> {
        let from_root = (namespace != root).then(|| self.in_namespace(root));
        let all = from_root.into_iter().flatten().chain(self.in_namespace(namespace));
        all.filter(move |policy| self.is_for(policy, namespace, labels))
    }

    /// All of them, by name.
    pub(in crate::policy) fn all(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.objects.values()
    }

    /// Whether the policy, of the root namespace or the pod's own, is for a pod with these labels.
    pub(in crate::policy) fn is_for(
        &self,
        policy: &AuthorizationPolicy,
        namespace: &str,
        labels: &Labels,
    ) -> bool {
        if policy.doubt == Some(Doubt::Scope) {
            return true;
        }
        match &policy.target {
            Target::Pods(selector) => selects(selector, labels),
            Target::Services(_) => {
                let mut selectors = policy.services().filter_map(|service| self.services.get(&service));
                *policy.name.namespace == *namespace && selectors.any(|selector| selects(selector, labels))
            }
        }
    }

    fn take(&mut self, root: &str, name: &ObjectName) -> Reach {
        let mut reach = Reach::default();
        if let Some(policy) = self.objects.get(name).cloned() {
            self.extend(&mut reach, root, &policy);
            self.objects.remove_mut(name);
        }
        reach
    }

    fn extend(&self, reach: &mut Reach, root: &str, policy: &AuthorizationPolicy) {
        let namespace = &policy.name.namespace;
        if policy.doubt == Some(Doubt::Scope) {
            return reach.select_from(root, namespace, &Labels::new());
        }
        match &policy.target {
            Target::Pods(selector) => reach.select_from(root, namespace, selector),
            Target::Services(_) => {
                for selector in policy.services().filter_map(|service| self.services.get(&service)) {
                    reach.select(namespace, selector);
                }
            }
        }
    }

    fn is_target(&self, service: &ObjectName) -> bool {
        self.in_namespace(&service.namespace).any(|policy| policy.services().any(|target| target == *service))
    }

    fn in_namespace<'a>(
        &'a self,
        namespace: &str,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> + use<'a> {
        let start = ObjectName::new(namespace, "");
        let namespace = Arc::clone(&start.namespace);
        self.objects
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(move |(name, _)| name.namespace == namespace)
            .map(|(_, policy)| policy)
    }
}

impl AuthorizationPolicy {
    /// The services that it is for.
    pub fn services(&self) -> impl Iterator<Item = ObjectName> + '_ {
        let names = match &self.target {
            Target::Services(names) => names.as_slice(),
            Target::Pods(_) => &[],
        };
        names
            .iter()
            .map(|name| ObjectName { namespace: Arc::clone(&self.name.namespace), name: Arc::clone(name) })
    }
}

fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
