//! Objects that are unreadable, double or gone.

use super::Test;

pub(super) const TESTS: &[Test] = &[];
