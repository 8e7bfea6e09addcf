//! Certificates in PEM texts, as CAs, issuers and operators hand them over.
//!
//! Promises a bound on their number, and that what cannot be read is an error as a whole.

use rustls_pki_types::{CertificateDer, pem::PemObject};

/// More certificates in one text are not believed.
pub const MAX_CERTIFICATES: usize = 64;

/// The certificates in a text, in their order: 1 to [`MAX_CERTIFICATES`]. Other kinds of PEM blocks are passed over. They
/// are not looked into. The error says what is wrong with the text, in a few words.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(text)
        .take(MAX_CERTIFICATES + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("not readable as PEM: {error}"))?;
    match found.len() {
        0 => Err("holds no PEM certificate".into()),
        1..=MAX_CERTIFICATES => Ok(found),
        _ => Err(format!("holds more than {MAX_CERTIFICATES} certificates")),
    }
}
