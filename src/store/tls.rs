//! TLS to Postgres as libpq means it: `require` encrypts without asking who answers, `verify-ca` asks for an authority,
//! `verify-full` for the host's name as well.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::StoreError;
use super::address::{Asked, SYSTEM, TlsWishes};

/// A connector that does this.
///
/// # Errors
/// [`StoreError::Address`] for a file that cannot be read as what it should be, [`StoreError::Tls`] for the rest.
pub(super) fn connector(wishes: &TlsWishes) -> Result<MakeRustlsConnect, StoreError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = |source| StoreError::Tls { source };
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(tls)?;
    let builder = match (wishes.asked, &wishes.authorities) {
        (Asked::Nothing, _) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Lenient { authority: None, provider }))
        }
        (_, None) => builder.with_platform_verifier().map_err(tls)?,
        (_, Some(file)) if file == Path::new(SYSTEM) => builder.with_platform_verifier().map_err(tls)?,
        (asked, Some(file)) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("sslrootcert", file)? {
                roots.add(certificate).map_err(|e| unusable("sslrootcert", file, &e))?;
            }
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
            let verifier = verifier.map_err(|e| unusable("sslrootcert", file, &e))?;
            match asked {
                Asked::Name => builder.with_webpki_verifier(verifier),
                _ => {
                    let lenient = Lenient { authority: Some(verifier), provider };
                    builder.dangerous().with_custom_certificate_verifier(Arc::new(lenient))
                }
            }
        }
    };
    let config = match &wishes.own {
        Some((certificate, key)) => {
            let read = std::fs::read(key).map_err(|e| unusable("sslkey", key, &e))?;
            let read = PrivateKeyDer::from_pem_slice(&read).map_err(|e| unusable("sslkey", key, &e))?;
            builder.with_client_auth_cert(certificates("sslcert", certificate)?, read).map_err(tls)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(MakeRustlsConnect::new(config))
}

fn unusable(option: &str, file: &Path, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Address { reason: format!("its {option} {} cannot be used: {why}", file.display()) }
}

/// The certificates of a PEM file, at least one.
fn certificates(option: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let bytes = std::fs::read(file).map_err(|e| unusable(option, file, &e))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(unusable(option, file, &"it holds no certificate in PEM form")),
        Ok(found) => Ok(found),
        Err(error) => Err(unusable(option, file, &error)),
    }
}

/// Asks for less than a certificate of the right authority with the right name. Signatures are checked in any case.
#[derive(Debug)]
struct Lenient {
    /// Whose certificates are taken, for any name, as `sslmode=verify-ca` does. None means any is, as with `sslmode=require`.
    authority: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        match authority.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is looked at last: everything else was in order.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
