//! What an attacker tries, topic by topic: each test fails where the attack succeeds.

mod ca;
mod credentials;
mod deputies;
mod doubts;
mod floods;
mod rivals;

use super::Test;

/// Every attack that needs no cluster.
pub(super) fn tests() -> Vec<Test> {
    [ca::TESTS, credentials::TESTS, deputies::TESTS, doubts::TESTS, floods::TESTS, rivals::TESTS].concat()
}
