//! The tunnel protocol `ambit/1`: TLS, frames, pool. Is told address and expected identity.

pub(crate) mod tls;
