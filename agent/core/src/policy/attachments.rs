//! Objects of one kind that are for the pods which a selector selects, or which are behind services, and which of them are for whom.
//! Persistent: readers hold snapshots.

use std::{ops::Bound, sync::Arc};

use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

use super::{AuthorizationPolicy, Doubt, Reach, RequestAuthentication, Target};
use crate::model::{Labels, ObjectName};

/// All of them, those of one namespace side by side.
#[derive(Clone, Debug)]
pub(super) struct Attachments<T> {
    objects: RedBlackTreeMapSync<ObjectName, Arc<T>>,
    /// The selectors of the services that objects are for, as far as they are known and have one.
    services: HashTrieMapSync<ObjectName, Labels>,
}

/// An object that is for some pods.
pub(super) trait Attached {
    fn name(&self) -> &ObjectName;
    fn target(&self) -> &Target;
    fn doubt(&self) -> Option<Doubt>;
}

impl<T> Default for Attachments<T> {
    fn default() -> Self {
        Self { objects: RedBlackTreeMapSync::default(), services: HashTrieMapSync::default() }
    }
}

impl<T: Attached> Attachments<T> {
    pub(super) fn len(&self) -> usize {
        self.objects.size()
    }

    pub(super) fn upsert(&mut self, root: &str, policy: Arc<T>) -> Reach {
        let mut reach = self.take(root, policy.name());
        self.extend(&mut reach, root, &policy);
        self.objects.insert_mut(policy.name().clone(), policy);
        reach
    }

    pub(super) fn remove(&mut self, root: &str, name: &ObjectName) -> Reach {
        let services = self.objects.get(name).map(|policy| services(&**policy).collect::<Vec<_>>());
        let reach = self.take(root, name);
        for service in
            services.into_iter().flatten().filter(|service| !self.is_target(service)).collect::<Vec<_>>()
        {
            self.services.remove_mut(&service);
        }
        reach
    }

    /// A service has this selector now, or none.
    pub(super) fn set_service(&mut self, name: &ObjectName, selector: Option<&Labels>) -> Reach {
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

    /// The policies for a pod in `namespace` with these labels, in force or not, those of the root namespace first.
    pub(super) fn for_pod<'a>(
        &'a self,
        root: &str,
        namespace: &'a str,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a Arc<T>> {
        let from_root = (namespace != root).then(|| self.in_namespace(root));
        let all = from_root.into_iter().flatten().chain(self.in_namespace(namespace));
        all.filter(move |policy| self.is_for(policy, namespace, labels))
    }

    /// All of them, by name.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<T>> {
        self.objects.values()
    }

    /// Whether the policy, of the root namespace or the pod's own, is for a pod with these labels.
    pub(super) fn is_for(&self, policy: &T, namespace: &str, labels: &Labels) -> bool {
        if policy.doubt() == Some(Doubt::Scope) {
            return true;
        }
        match policy.target() {
            Target::Pods(selector) => selects(selector, labels),
            Target::Services(_) => {
                let mut selectors = services(policy).filter_map(|service| self.services.get(&service));
                *policy.name().namespace == *namespace && selectors.any(|selector| selects(selector, labels))
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

    fn extend(&self, reach: &mut Reach, root: &str, policy: &T) {
        let namespace = &policy.name().namespace;
        if policy.doubt() == Some(Doubt::Scope) {
            return reach.select_from(root, namespace, &Labels::new());
        }
        match policy.target() {
            Target::Pods(selector) => reach.select_from(root, namespace, selector),
            Target::Services(_) => {
                for selector in services(policy).filter_map(|service| self.services.get(&service)) {
                    reach.select(namespace, selector);
                }
            }
        }
    }

    fn is_target(&self, service: &ObjectName) -> bool {
        self.in_namespace(&service.namespace)
            .any(|policy| services(&**policy).any(|target| target == *service))
    }

    fn in_namespace<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<T>> + use<'a, T> {
        let start = ObjectName::new(namespace, "");
        let namespace = Arc::clone(&start.namespace);
        self.objects
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(move |(name, _)| name.namespace == namespace)
            .map(|(_, policy)| policy)
    }
}

/// The services that an object is for.
fn services<T: Attached>(object: &T) -> impl Iterator<Item = ObjectName> + use<'_, T> {
    let names = match object.target() {
        Target::Services(names) => names.as_slice(),
        Target::Pods(_) => &[],
    };
    let namespace = &object.name().namespace;
    names.iter().map(|name| ObjectName::new(Arc::clone(namespace), Arc::clone(name)))
}

/// The parts that two kinds have alike.
macro_rules! attached {
    ($($kind:ty),*) => {$(
        impl Attached for $kind {
            fn name(&self) -> &ObjectName {
                &self.name
            }

            fn target(&self) -> &Target {
                &self.target
            }

            fn doubt(&self) -> Option<Doubt> {
                self.doubt
            }
        }

        impl $kind {
            /// The services that it is for.
            pub fn services(&self) -> impl Iterator<Item = ObjectName> + '_ {
                services(self)
            }
        }
    )*};
}

attached!(AuthorizationPolicy, RequestAuthentication);

fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
