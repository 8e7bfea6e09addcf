//! A rival for the agent's port, a full map, a node port: capture under attack.

use super::Test;

pub(super) const TESTS: &[Test] = &[];
