//! What a stolen token of a node, of its CNI plugin or of the CA may do.

use super::Test;

pub(super) const TESTS: &[Test] = &[];
