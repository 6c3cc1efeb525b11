//! Mutual TLS 1.3: certificates from PEM files, the role and names in them, reload.
//!
//! One CA for a cluster. A certificate's common name (CN) is the role of its holder, `leader`,
//! `member` or `client` (a leader's may be given another one in the settings); its subject
//! alternative names (SAN) hold the node's name (`member-1`), and by convention `localhost` and
//! `127.0.0.1` for other tools.
//!
//! # Verification
//!
//! Both sides demand a chain to the CA of the files, valid now. Host names and addresses prove
//! nothing here: a member moves, and its address comes from a registry. So the dialling side does
//! not compare the host name; instead [`PeerCertificate`] gives role and names, and `greeting`
//! compares them with what is expected, and with the peer's Hello, before anything else is said.
//! `localhost` is never a node's name, as every certificate may carry it.
//!
//! # Reload
//!
//! [`TlsContext::reload`] reads and checks all three files, our own chain and expiry included, and
//! only then replaces what new connections use. On any error the last good ones stay.
//!
//! Sessions are not resumed: links are few and long-lived, and tickets would cost memory and
//! outlive a change of certificates. There is no revocation: replace the CA.

pub mod session;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock::Clock;
use crate::rpc::message::Role;

/// In every certificate by convention, so nobody's name.
const SHARED_NAME: &str = "localhost";

/// Where the PEM files of a process are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The cluster's CA certificate; several while one replaces another.
    pub ca: PathBuf,
    /// This process's certificate, then intermediates, if any.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The common name of a leader's certificate, `leader` unless a cluster was given its own.
    pub leader_name: String,
}

impl TlsSettings {
    /// A number that follows from the key of the (first) CA: nodes that were told no cluster id
    /// agree on this one. FNV-1a of the key's DER; it tells clusters apart and proves nothing.
    pub fn authority_id(&self) -> Result<u64, TlsError> {
        let certificates = read_certificates(&self.ca)?;
        let (_, certificate) = X509Certificate::from_der(&certificates[0])
            .map_err(|error| file_error(&self.ca, format!("is not X.509: {error}")))?;
        let key = certificate.public_key().raw;
        Ok(key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        }))
    }
}

/// What is wrong with certificates or with a TLS connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file of ours cannot be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The peer's certificate, its chain being good, has no role or no name.
    #[error("certificate of the peer {0}")]
    Certificate(String),
    /// The peer broke TLS, speaks something else, or did not accept us.
    #[error("tls: {0}")]
    Broken(String),
}

/// The certificates in use.
pub struct TlsContext {
    settings: TlsSettings,
    clock: Arc<dyn Clock>,
    /// Replaced as a whole by a reload; a connection keeps those it began with.
    current: RwLock<Arc<Loaded>>,
}

/// All that one good reading of the files gave.
struct Loaded {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    own: PeerCertificate,
    leader_name: String,
}

impl TlsContext {
    /// Reads and checks the files.
    pub fn load(settings: TlsSettings, clock: Arc<dyn Clock>) -> Result<Arc<TlsContext>, TlsError> {
        let loaded = Loaded::read(&settings, clock.wall_ms())?;
        Ok(Arc::new(TlsContext {
            settings,
            clock,
            current: RwLock::new(Arc::new(loaded)),
        }))
    }

    /// Reads the files again for new connections; open ones go on. On an error nothing changes.
    pub fn reload(&self) -> Result<(), TlsError> {
        let loaded = Loaded::read(&self.settings, self.clock.wall_ms())?;
        *self.current.write() = Arc::new(loaded);
        Ok(())
    }

    /// Our own certificate.
    pub fn own(&self) -> PeerCertificate {
        self.current.read().own.clone()
    }

    fn loaded(&self) -> Arc<Loaded> {
        self.current.read().clone()
    }
}

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// From the CN.
    pub role: Role,
    /// The DNS names of the SAN except `localhost`; one of them is the node's name.
    pub names: Vec<String>,
    /// When it ends, in seconds since the Unix epoch.
    pub expires_unix_s: i64,
}

impl PeerCertificate {
    fn parse(der: &CertificateDer<'_>, leader_name: &str) -> Result<PeerCertificate, String> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| format!("is not X.509: {error}"))?;
        let common_names: Vec<&str> = certificate
            .subject()
            .iter_common_name()
            .map(|name| name.as_str().unwrap_or("(not text)"))
            .collect();
        let role = match common_names[..] {
            [name] if name == leader_name => Role::Leader,
            ["member"] => Role::Member,
            ["client"] => Role::Client,
            _ => {
                return Err(format!(
                    "has the common name {common_names:?}, not {leader_name}, member or client"
                ));
            }
        };
        let extension = certificate
            .subject_alternative_name()
            .map_err(|error| format!("has a bad SAN: {error}"))?;
        let names: Vec<String> = extension
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) if *name != SHARED_NAME => Some((*name).to_owned()),
                _ => None,
            })
            .collect();
        if names.is_empty() {
            return Err("has no DNS name in its SAN".to_owned());
        }
        Ok(PeerCertificate {
            role,
            names,
            expires_unix_s: certificate.validity().not_after.timestamp(),
        })
    }
}

impl Loaded {
    fn read(settings: &TlsSettings, wall_ms: u64) -> Result<Loaded, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(read_roots(&settings.ca)?);
        let chain = read_certificates(&settings.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&settings.key)
            .map_err(|error| file_error(&settings.key, error))?;
        let own = check_own(settings, &chain, &roots, &provider, wall_ms)?;
        let on_pair = |error| file_error(&settings.certificate, error);

        let verifier = ChainVerifier {
            roots: roots.clone(),
            provider: provider.clone(),
        };
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(on_pair)?
            .dangerous() // What is skipped is the host name alone: see the header.
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(on_pair)?;
        client.resumption = Resumption::disabled();
        client.enable_sni = false;

        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| file_error(&settings.ca, error))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(on_pair)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(on_pair)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        Ok(Loaded {
            client: Arc::new(client),
            server: Arc::new(server),
            own,
            leader_name: settings.leader_name.clone(),
        })
    }
}

fn file_error(path: &Path, problem: impl Display) -> TlsError {
    TlsError::File {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| file_error(path, error))?;
    if certificates.is_empty() {
        return Err(file_error(path, "has no certificate"));
    }
    Ok(certificates)
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| file_error(path, error))?;
    }
    Ok(roots)
}

/// A certificate that no peer would accept is found here and not when the first connection fails.
fn check_own(
    settings: &TlsSettings,
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
    wall_ms: u64,
) -> Result<PeerCertificate, TlsError> {
    let path = &settings.certificate;
    let (own, intermediates) = chain.split_first().expect("checked not to be empty");
    let now = UnixTime::since_unix_epoch(Duration::from_millis(wall_ms));
    verify_chain(own, intermediates, roots, provider, now)
        .map_err(|error| file_error(path, format!("not valid under the CA: {error}")))?;
    PeerCertificate::parse(own, &settings.leader_name).map_err(|problem| file_error(path, problem))
}

fn verify_chain(
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let algorithms = provider.signature_verification_algorithms.all;
    let certificate = ParsedCertificate::try_from(certificate)?;
    verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)
}

/// What the dialling side demands of the TLS handshake: a chain to our CA, and the key's signature.
#[derive(Debug)]
struct ChainVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_chain(end_entity, intermediates, &self.roots, &self.provider, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
