//! Issuers and the key store: publishes one SVID per workload identity, keys in memory only.
