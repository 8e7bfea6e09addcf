//! Kubelets and cgroups that are not what they seem.

use super::Test;

pub(super) const TESTS: &[Test] = &[];
