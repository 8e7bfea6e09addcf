//! Feeds: the outside world's objects become one snapshot of mesh and policies.
