//! Reads a certificate request as strictly as it can be read: a signed key, one URI SAN, and nothing else.
//!
//! Input is hostile: bounded before it is parsed, and every failure is a value. Leaves to others who may have the identity.

use ambit_core::model::SpiffeId;
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Version},
    x509::{AlgorithmIdentifier, SubjectPublicKeyInfo},
};

/// A longer text or request is not looked at. A P-384 request with the longest identity takes less than 2 KiB.
const MAX_LENGTH: usize = 16 * 1024;

const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";
const ECDSA_SHA384: &str = "1.2.840.10045.4.3.3";

/// A request that asks for one identity and nothing else, proved to be made by the holder of its key.
#[derive(Debug)]
pub struct CheckedRequest {
    /// The identity asked for.
    pub id: SpiffeId,
    /// DER of the SubjectPublicKeyInfo: an ECDSA key on P-256 or P-384.
    pub public_key: Vec<u8>,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// It cannot be read, or asks for more than an identity.
    #[error("the certificate request {0}")]
    Request(String),
    /// What is asked for is no workload identity.
    #[error("the identity asked for: {0}")]
    Identity(String),
    /// It is not signed with its own key.
    #[error("the certificate request's signature is not by its key")]
    Signature,
    /// Not a key that is signed here.
    #[error("the certificate request's key is not ECDSA P-256 or P-384")]
    Key,
}

impl CheckedRequest {
    /// Checks the one request in a PEM text.
    pub fn from_pem(text: &str) -> Result<Self, RequestFault> {
        if text.len() > MAX_LENGTH {
            return Err(bad("is too long"));
        }
        let mut blocks = CertificateSigningRequestDer::pem_slice_iter(text.as_bytes());
        let der = match blocks.next() {
            Some(Ok(der)) => der,
            Some(Err(_)) => return Err(bad("is not readable as PEM")),
            None => return Err(bad("is not there: no PEM block CERTIFICATE REQUEST")),
        };
        if blocks.next().is_some() {
            return Err(bad("is not the only one in the text"));
        }
        Self::from_der(&der)
    }

    /// Checks one PKCS#10 request.
    pub fn from_der(der: &[u8]) -> Result<Self, RequestFault> {
        if der.len() > MAX_LENGTH {
            return Err(bad("is too long"));
        }
        let Ok((rest, request)) = X509CertificationRequest::from_der(der) else {
            return Err(bad("is not readable as PKCS#10"));
        };
        if !rest.is_empty() {
            return Err(bad("has bytes behind its end"));
        }
        let info = &request.certification_request_info;
        if info.version != X509Version::V1 {
            return Err(bad("is of an unknown version"));
        }
        check_key(&info.subject_pki, &request.signature_algorithm)?;
        if info.subject.iter().next().is_some() {
            return Err(bad("has a subject name"));
        }
        let id = only_identity(&request)?;
        request.verify_signature().map_err(|_| RequestFault::Signature)?;
        Ok(Self { id, public_key: info.subject_pki.raw.to_vec() })
    }
}

/// The key's curve and the hash it signs with belong together: P-256 with SHA-256, P-384 with SHA-384.
fn check_key(
    key: &SubjectPublicKeyInfo<'_>,
    signature: &AlgorithmIdentifier<'_>,
) -> Result<(), RequestFault> {
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let (hash, point) = match curve.map(|oid| oid.to_id_string()).as_deref() {
        Some(P256) => (ECDSA_SHA256, 65),
        Some(P384) => (ECDSA_SHA384, 97),
        _ => return Err(RequestFault::Key),
    };
    let uncompressed = key.subject_public_key.data.first() == Some(&4)
        && key.subject_public_key.data.len() == point
        && key.subject_public_key.unused_bits == 0;
    let algorithm = key.algorithm.algorithm.to_id_string();
    if algorithm != EC_PUBLIC_KEY || !uncompressed || signature.algorithm.to_id_string() != hash {
        return Err(RequestFault::Key);
    }
    Ok(())
}

/// The URI of a request whose one attribute has one extension with one name.
fn only_identity(request: &X509CertificationRequest<'_>) -> Result<SpiffeId, RequestFault> {
    let [attribute] = request.certification_request_info.attributes() else {
        return Err(bad("must have one attribute, the one that asks for extensions"));
    };
    let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else {
        return Err(bad("has an attribute that asks for no extension"));
    };
    let [extension] = asked.extensions.as_slice() else {
        return Err(bad("asks for other extensions than one subject alternative name"));
    };
    let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
        return Err(bad("asks for another extension than the subject alternative name"));
    };
    match names.general_names.as_slice() {
        [GeneralName::URI(uri)] => uri.parse().map_err(|error| RequestFault::Identity(format!("{error}"))),
        [_] => Err(bad("asks for a name that is no URI")),
        several => {
            Err(RequestFault::Request(format!("asks for {} names where one is allowed", several.len())))
        }
    }
}

fn bad(text: &str) -> RequestFault {
    RequestFault::Request(text.to_owned())
}

#[cfg(test)]
mod tests;
