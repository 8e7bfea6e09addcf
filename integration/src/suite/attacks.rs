//! What an attacker tries, topic by topic: each test fails where the attack succeeds.

mod credentials;
mod deputies;
mod doubts;
mod floods;
mod rivals;

use super::Test;

/// Every attack that needs no cluster.
pub(super) fn tests() -> Vec<Test> {
    [credentials::TESTS, deputies::TESTS, doubts::TESTS, floods::TESTS, rivals::TESTS].concat()
}
