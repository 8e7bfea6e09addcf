//! Questions about who may connect to whom, answered from what is known of the cluster: why a connection is let in or refused,
//! what is for a pod, and what in the policies is likely a mistake.
//!
//! Promises that verdicts are those that connections get, and that an answer is bounded however big the cluster is. Reading objects
//! and showing answers is left to others.

mod analysis;
mod check;
mod connection;
mod layer7;
mod reference;
mod request;

use crate::{discovery::Mesh, policy::PolicySet};

pub use analysis::{CODES, Finding, Level, Subject, analyze};
pub use check::{Checked, PortMode, check};
pub use connection::{Answer, Case, Client, Outcome, Question, explain};
pub use layer7::{Layer7, ReadPort, layer7};
pub use reference::{Reference, Role, Unanswerable, destination};
pub use request::{Asked, JudgedRequest, Token};

/// What is known of a cluster at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// Pods and services.
    pub mesh: &'a Mesh,
    /// Policies.
    pub policies: &'a PolicySet,
}

#[cfg(test)]
mod tests;
