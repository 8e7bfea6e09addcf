//! The kubelet as a deputy of pods outside the mesh.

use super::Test;

pub(super) const TESTS: &[Test] = &[];
