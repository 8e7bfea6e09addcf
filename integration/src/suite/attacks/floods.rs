//! Floods of connections, silence and half messages.

use super::Test;

pub(super) const TESTS: &[Test] = &[];
