//! Mutual TLS 1.3 from PEM files, which are loaded anew when they change.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig, crypto, version};
use webpki::{EndEntityCert, KeyUsage};

use crate::config::TlsConfig;

/// Why PEM files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {file}: {source}; check its path and who may read it", file = file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it must be.
    #[error(
        "{file} holds no usable {what}: {source}; it has to be PEM, and whole",
        file = file.display()
    )]
    Pem {
        /// Which file.
        file: PathBuf,
        /// What is expected in it.
        what: &'static str,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The private key is of an unknown kind, or belongs to another certificate.
    #[error(
        "the key in {key} does not fit the first certificate in {certificate}: {source}; replace both together",
        key = key.display(), certificate = certificate.display()
    )]
    Key {
        /// The file with the key.
        key: PathBuf,
        /// The file with the certificates.
        certificate: PathBuf,
        /// What TLS said.
        source: rustls::Error,
    },
    /// An authority is unusable.
    #[error("{file} cannot be the authority: {source}; it needs certificates that may sign others", file = file.display())]
    Authority {
        /// The file with the authorities.
        file: PathBuf,
        /// What TLS said.
        source: rustls::Error,
    },
    /// No other node with the same authority would take the certificate.
    #[error(
        "the certificate in {certificate} would be refused as one of a {role} by those who trust {authority}: {source}; issue one that is valid now, by that authority, for both serverAuth and clientAuth",
        certificate = certificate.display(), authority = authority.display()
    )]
    Refused {
        /// The file with the certificates.
        certificate: PathBuf,
        /// The file with the authorities.
        authority: PathBuf,
        /// Client or server.
        role: &'static str,
        /// What is wrong with it.
        source: webpki::Error,
    },
    /// TLS does not take it for another reason.
    #[error("TLS cannot be set up: {0}; check all three files")]
    Setup(rustls::Error),
}

/// Mutual TLS 1.3: this node's certificate and key, and the authority that has signed those of
/// all nodes. Both sides show a certificate and verify the other's. Certificates that have been
/// revoked are not known: a cluster whose key is lost gets a new authority.
///
/// It may be shared by threads: looking at files can take as long as a disk likes, so
/// [`Tls::reload_if_changed`] is not for the thread that drives connections.
pub struct Tls {
    files: TlsConfig,
    current: Mutex<Current>,
}

/// What is in force, and the files that it is from.
struct Current {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    stamps: [Stamp; 3],
}

/// What tells that a file has changed.
#[derive(Copy, Clone, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Tls {
    /// Loads the files.
    ///
    /// # Errors
    /// When one cannot be read, or they do not fit together: the key has to be the certificate's,
    /// and the authority has to vouch for that, now, as for a server and as for a client.
    pub fn load(config: &TlsConfig) -> Result<Self, TlsError> {
        let files = config.clone();
        let current = Mutex::new(load(&files)?);
        Ok(Self { files, current })
    }

    /// Loads the files anew when one of them has changed; connections that are made from then on
    /// use them. True when it did.
    ///
    /// # Errors
    /// When the changed files cannot be used, as in [`Tls::load`]. What was loaded before stays in
    /// force, and the next call tries again: files that are replaced one by one do not fit
    /// together for a moment.
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        if stamps(&self.files)? == self.current().stamps {
            return Ok(false);
        }
        let loaded = load(&self.files)?;
        *self.current() = loaded;
        Ok(true)
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.current().client.clone()
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.current().server.clone()
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().expect("nobody panics while holding it")
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

fn stamps(files: &TlsConfig) -> Result<[Stamp; 3], TlsError> {
    let stamp = |file: &Path| {
        let metadata: Metadata = fs::metadata(file)
            .map_err(|source| TlsError::Read { file: file.to_owned(), source })?;
        Ok(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    };
    Ok([stamp(&files.certificate)?, stamp(&files.key)?, stamp(&files.authority)?])
}

fn load(files: &TlsConfig) -> Result<Current, TlsError> {
    // Before they are read: what changes meanwhile is seen as a change afterwards.
    let stamps = stamps(files)?;
    let chain = certificates(&files.certificate)?;
    let key = read(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(pem_error(&files.key, "private key"))?;
    let roots = Arc::new(roots(&files.authority)?);
    let provider = Arc::new(crypto::ring::default_provider());
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|source| {
        let (key, certificate) = (files.key.clone(), files.certificate.clone());
        TlsError::Key { key, certificate, source }
    })?;
    check_trusted(&certified, &roots, &provider, files)?;
    let certified = Arc::new(SingleCertAndKey::from(certified));
    let client = client_config(certified.clone(), roots.clone(), provider.clone())?;
    let server = server_config(certified, roots, provider)?;
    Ok(Current { client: Arc::new(client), server: Arc::new(server), stamps })
}

fn client_config(
    certified: Arc<SingleCertAndKey>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
) -> Result<ClientConfig, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .map_err(|error| TlsError::Setup(rustls::Error::General(error.to_string())))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Setup)?
        .with_webpki_verifier(verifier)
        .with_client_cert_resolver(certified);
    // Each connection verifies anew.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server_config(
    certified: Arc<SingleCertAndKey>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .map_err(|error| TlsError::Setup(rustls::Error::General(error.to_string())))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certified);
    // A client that only writes never reads them, and unread bytes turn its close into a reset
    // that loses data.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What the other nodes will check, so that it is known here and now.
fn check_trusted(
    certified: &CertifiedKey,
    roots: &RootCertStore,
    provider: &CryptoProvider,
    files: &TlsConfig,
) -> Result<(), TlsError> {
    let refused = |role| {
        move |source| TlsError::Refused {
            certificate: files.certificate.clone(),
            authority: files.authority.clone(),
            role,
            source,
        }
    };
    let (own, between) = certified.cert.split_first().expect("a chain has a certificate");
    let roles = [("server", KeyUsage::server_auth()), ("client", KeyUsage::client_auth())];
    for (role, usage) in roles {
        let algorithms = provider.signature_verification_algorithms.all;
        EndEntityCert::try_from(own)
            .map_err(refused(role))?
            .verify_for_usage(algorithms, &roots.roots, between, UnixTime::now(), usage, None, None)
            .map_err(refused(role))?;
    }
    Ok(())
}

fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Authority { file: file.to_owned(), source })?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(pem::Error::NoItemsFound),
        found => found,
    }
    .map_err(pem_error(file, "certificate"))
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|source| TlsError::Read { file: file.to_owned(), source })
}

fn pem_error(file: &Path, what: &'static str) -> impl Fn(pem::Error) -> TlsError {
    move |source| TlsError::Pem { file: file.to_owned(), what, source }
}

/// The certificate of the other side of a connection, which the authority has signed.
#[derive(Clone, Debug)]
pub struct PeerCertificate(CertificateDer<'static>);

impl PeerCertificate {
    pub(super) fn first_of(chain: Option<&[CertificateDer<'_>]>) -> Option<Self> {
        Some(Self(chain?.first()?.clone().into_owned()))
    }

    /// The DNS names (wildcards as they are written) and URIs among its subject alternative names.
    pub fn names(&self) -> Vec<String> {
        let Ok(certificate) = EndEntityCert::try_from(&self.0) else {
            return Vec::new();
        };
        let names = certificate.valid_dns_names().chain(certificate.valid_uri_names());
        names.map(str::to_owned).collect()
    }

    /// Whether it is of this host name or IP address.
    pub fn is_of(&self, host: &str) -> bool {
        let (Ok(certificate), Ok(name)) =
            (EndEntityCert::try_from(&self.0), ServerName::try_from(host))
        else {
            return false;
        };
        certificate.verify_is_valid_for_subject_name(&name).is_ok()
    }
}
