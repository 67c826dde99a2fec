//! TLS 1.3 for QUIC: hosts prove by certificates of the cluster's authority who they are, both
//! ways. No session is resumed, so there is no 0-RTT and no request can be replayed.

use crate::cluster::Identity;
use crate::limits;
use pannier_engine::error::{Error, ErrorKind, Result};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// Protocol of hosts of the cluster.
pub(crate) const ALPN_PEER: &[u8] = b"pannier/1";
/// Protocol of a host that joins: no certificate yet, one request.
pub(crate) const ALPN_JOIN: &[u8] = b"pannier-join/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn fail(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Corrupt, format!("this host's certificates: {error}")).with_source(error)
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority().clone()).map_err(fail)?;
    Ok(Arc::new(roots))
}

/// Configuration of the accepting side. With `joining`, connections without a certificate get
/// through the handshake, to be let into the join service alone; a certificate that is shown must
/// be a good one all the same.
pub(crate) fn server(identity: &Identity, joining: bool) -> Result<quinn::ServerConfig> {
    let mut verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider());
    if joining {
        verifier = verifier.allow_unauthenticated();
    }
    let verifier = verifier.build().map_err(fail)?;
    let mut chain = vec![identity.certificate().clone()];
    if joining {
        // A joining host knows the authority by its fingerprint only.
        chain.push(identity.authority().clone());
    }
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(fail)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, identity.key())
        .map_err(fail)?;
    config.alpn_protocols = vec![ALPN_PEER.to_vec()];
    if joining {
        config.alpn_protocols.push(ALPN_JOIN.to_vec());
    }
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    let config = QuicServerConfig::try_from(config).map_err(fail)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(config));
    config.max_incoming(limits::INCOMING_MAX);
    Ok(config)
}

/// Configuration of the connecting side.
pub(crate) fn client(identity: &Identity) -> Result<quinn::ClientConfig> {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(fail)?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(vec![identity.certificate().clone()], identity.key())
        .map_err(fail)?;
    finish_client(config, ALPN_PEER)
}

/// Configuration of a host that joins the cluster whose authority has this fingerprint.
pub(crate) fn joining_client(authority: [u8; 32]) -> Result<quinn::ClientConfig> {
    without_certificate(authority, ALPN_JOIN)
}

/// A client of the hosts' protocol that shows no certificate.
#[cfg(test)]
pub(crate) fn anonymous_client(authority: [u8; 32]) -> Result<quinn::ClientConfig> {
    without_certificate(authority, ALPN_PEER)
}

fn without_certificate(authority: [u8; 32], alpn: &[u8]) -> Result<quinn::ClientConfig> {
    let verifier = Arc::new(FingerprintVerifier { authority, provider: provider() });
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(fail)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    finish_client(config, alpn)
}

fn finish_client(mut config: rustls::ClientConfig, alpn: &[u8]) -> Result<quinn::ClientConfig> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    let config = QuicClientConfig::try_from(config).map_err(fail)?;
    Ok(quinn::ClientConfig::new(Arc::new(config)))
}

/// Accepts a server whose chain ends in the authority with a known fingerprint. Beside that the
/// checks are the usual ones: signature, validity, name.
#[derive(Debug)]
struct FingerprintVerifier {
    authority: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| crate::cluster::fingerprint(certificate) == self.authority)
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
