//! Certificates for tests, and files with them.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use ringwal_replication::config::TlsConfig;

pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        // Each has a name of its own: two of the same name are told apart by signatures only.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub fn issue(&self, name: &str) -> Issued {
        self.issue_with(name, |_| {})
    }

    pub fn issue_expired(&self, name: &str) -> Issued {
        self.issue_with(name, |params| params.not_after = date_time_ymd(2020, 1, 1))
    }

    pub fn issue_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Issued { certificate, key: key.serialize_pem() }
    }
}

/// Writes the files of one node, over those that are there.
pub fn write(directory: &Path, issued: &Issued, authorities: &[&Authority]) -> TlsConfig {
    let paths = ["node.crt", "node.key", "authority.crt"].map(|name| directory.join(name));
    let authorities: String = authorities.iter().map(|authority| authority.pem.as_str()).collect();
    let texts = [&issued.certificate, &issued.key, &authorities];
    for (path, text) in paths.iter().zip(texts) {
        // As programs that renew certificates do it: another file in the place of the old one.
        let new = path.with_extension("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(new, path).expect("in its place");
    }
    let [certificate, key, authority] = paths;
    TlsConfig::new(certificate, key, authority)
}
