//! Whom CUSTOM policies have asked. Only one provider may be asked for one workload, and only one that the installation has.

use std::{collections::BTreeSet, fmt, sync::Arc};

use super::AuthorizationPolicy;

/// The names of the external providers that an installation has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::policy) struct Providers(Arc<BTreeSet<Arc<str>>>);

/// The provider of one workload's CUSTOM policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Asked {
    #[default]
    Nobody,
    One(Arc<str>),
    Unknown(Arc<str>),
    Several(Arc<str>),
}

/// Why nobody can be asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unaskable<'a> {
    NotNamed,
    Unknown(&'a str),
    /// These.
    Several(&'a str),
}

impl Providers {
    pub(in crate::policy) fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    pub(in crate::policy) fn new(names: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self(Arc::new(names.into_iter().collect()))
    }
}

impl Asked {
    pub(super) fn by(policies: &[Arc<AuthorizationPolicy>], known: &Providers) -> Self {
        let named: BTreeSet<&Arc<str>> =
            policies.iter().filter_map(|policy| policy.provider.as_ref()).collect();
        match named.first() {
            None => Self::Nobody,
            Some(_) if named.len() > 1 => {
                let names: Vec<&str> = named.iter().map(|name| &***name).collect();
                Self::Several(names.join(", ").into())
            }
            Some(name) if known.0.contains(*name) => Self::One(Arc::clone(name)),
            Some(name) => Self::Unknown(Arc::clone(name)),
        }
    }

    /// Who is asked for one of the policies.
    pub(super) fn about(&self, policy: &AuthorizationPolicy) -> Result<&Arc<str>, Unaskable<'_>> {
        match self {
            _ if policy.provider.is_none() => Err(Unaskable::NotNamed),
            Self::One(name) => Ok(name),
            Self::Unknown(name) => Err(Unaskable::Unknown(name)),
            Self::Several(names) => Err(Unaskable::Several(names)),
            Self::Nobody => Err(Unaskable::NotNamed),
        }
    }
}

impl fmt::Display for Unaskable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNamed => f.write_str("it is not known which provider it names"),
            Self::Unknown(name) => write!(f, "its provider {name:?} is none of the extension providers"),
            Self::Several(names) => {
                write!(f, "CUSTOM policies for one pod may name one provider, and these name {names}")
            }
        }
    }
}
