//! Which certificate authorities speak for servers outside the mesh: those of the machine, else those that Mozilla trusts.

use std::sync::{Arc, LazyLock};

use rustls::RootCertStore;

/// The roots, read once. `SSL_CERT_FILE` and `SSL_CERT_DIR` name other ones, as with OpenSSL; the image has none of its own, and
/// goes by those that are built in.
pub(crate) fn roots() -> Arc<RootCertStore> {
    static ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| Arc::new(read()));
    ROOTS.clone()
}

fn read() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "certificate authorities of the machine cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}
