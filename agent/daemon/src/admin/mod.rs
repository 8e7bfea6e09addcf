//! Read-only views over a UNIX socket (gRPC) and HTTP: status, metrics, readiness. Decides nothing.
