//! Private keys of workloads.

use std::{fmt, sync::Arc};

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::PrivateKeyDer;
use zeroize::Zeroize as _;

/// A private key. Lives in memory only, is never printed, and is wiped when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct PrivateKey(Arc<Secret>);

struct Secret(PrivateKeyDer<'static>);

impl PrivateKey {
    /// The key itself, for the TLS library.
    pub(crate) fn der(&self) -> &PrivateKeyDer<'static> {
        &self.0.0
    }

    /// DER of the SubjectPublicKeyInfo that belongs to it.
    pub(super) fn public_key(&self) -> Result<Vec<u8>, rcgen::Error> {
        Ok(KeyPair::try_from(&self.0.0)?.subject_public_key_info())
    }
}

impl From<PrivateKeyDer<'static>> for PrivateKey {
    fn from(key: PrivateKeyDer<'static>) -> Self {
        Self(Arc::new(Secret(key)))
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}
