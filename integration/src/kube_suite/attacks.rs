//! What an attacker tries where it takes a real API server and real kubelets: each test fails where the attack succeeds.

mod deputies;
mod doubts;
mod rights;
mod rivals;

use super::Test;

/// Every attack on the cluster.
pub(super) fn tests() -> Vec<Test> {
    [deputies::TESTS, doubts::TESTS, rights::TESTS, rivals::TESTS].concat()
}
