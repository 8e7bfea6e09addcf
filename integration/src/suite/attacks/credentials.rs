//! Revoked and withdrawn credentials.

use super::Test;

pub(super) const TESTS: &[Test] = &[];
