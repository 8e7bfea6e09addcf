//! Policies that decide nothing, tried on connections that others have decided on. Nothing here reaches a verdict.

use std::sync::Arc;

use super::{Action, Authorization, AuthorizationPolicy, Holds, Providers};
use crate::{
    policy::Facts,
    reason::{Refusal, Rehearsed},
};

/// What is to be rehearsed for one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::policy) struct Rehearsal {
    /// AUDIT, and those marked as dry-run.
    policies: Arc<[Arc<AuthorizationPolicy>]>,
    /// What is in force and what is marked, as if all were in force.
    together: Authorization,
}

impl Rehearsal {
    pub(in crate::policy) fn of(
        enforced: &[Arc<AuthorizationPolicy>],
        rehearsed: Vec<Arc<AuthorizationPolicy>>,
        providers: &Providers,
    ) -> Self {
        if rehearsed.is_empty() {
            return Self::default();
        }
        let together = Authorization::of(enforced.iter().chain(&rehearsed), providers);
        Self { policies: rehearsed.into(), together }
    }

    pub(in crate::policy) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Whether what it finds depends on what the connection carries.
    pub(in crate::policy) fn is_open(&self, facts: &Facts<'_>) -> bool {
        let mut rules =
            self.policies.iter().flat_map(|policy| policy.rules.iter().map(|rule| (policy.action, rule)));
        rules.any(|(action, rule)| rule.will_match(action, facts) == Holds::Perhaps)
    }

    /// As [`rehearse`](crate::policy::rehearse), beside what is `enforced`.
    pub(in crate::policy) fn run(
        &self,
        enforced: &Authorization,
        namespace: &str,
        facts: &Facts<'_>,
        mut tell: impl FnMut(&AuthorizationPolicy, Rehearsed),
    ) -> Option<Refusal> {
        let let_in = enforced.judge(facts).is_none();
        let would_be_let_in = self.together.judge(facts).is_none();
        let (refused, admitted) = (let_in && !would_be_let_in, !let_in && would_be_let_in);
        // While one that refuses matches, it is not known what ALLOW policies would do.
        let shut_out = refused && !self.refuses(facts);
        for policy in self.policies.iter() {
            let matching = policy.matching(facts);
            tell(
                policy,
                match (policy.action, matching) {
                    (Action::Audit, Some(at)) => Rehearsed::Audited(at),
                    (Action::Deny | Action::Custom, Some(_)) if refused => Rehearsed::WouldRefuse,
                    // Where none of them matches, it is all of them that shut the connection out.
                    (Action::Allow, None) if shut_out => Rehearsed::WouldRefuse,
                    (Action::Allow, Some(at)) if admitted => Rehearsed::WouldAdmit(at),
                    _ => Rehearsed::Unchanged,
                },
            );
        }
        if refused { self.together.refusal(namespace, facts) } else { None }
    }

    fn refuses(&self, facts: &Facts<'_>) -> bool {
        let mut refusing = self.policies.iter().filter(|policy| policy.action.refuses());
        refusing.any(|policy| policy.matching(facts).is_some())
    }
}

impl Action {
    /// As `spec.action` has it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        }
    }

    fn refuses(self) -> bool {
        matches!(self, Self::Deny | Self::Custom)
    }
}
