//! For tests, here and of other modules and suites: a CA and certificates in a directory.
//!
//! Not used by the processes; `tolerex certs` makes certificates for people. Panics on any error.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::clock::Clock;
use crate::rpc::message::Role;
use crate::rpc::tls::{TlsContext, TlsSettings};

/// A certificate authority that writes to a directory.
pub struct TestPki {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl TestPki {
    /// Makes a new CA and writes `ca.pem` to `dir`, which exists.
    pub fn new(dir: &Path) -> TestPki {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::CommonName, "tolerex test ca");
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a CA");
        write(&dir.join("ca.pem"), &issuer.pem());
        let dir = dir.to_owned();
        TestPki { dir, issuer }
    }

    /// Issues a certificate for `name`, with `localhost` and 127.0.0.1, and names its files.
    /// Issuing for the same name again overwrites them.
    pub fn issue(&self, name: &str, role: Role) -> TlsSettings {
        self.issue_as(name, &role.to_string())
    }

    /// The same with any common name, so that wrong ones can be tried.
    pub fn issue_as(&self, name: &str, common_name: &str) -> TlsSettings {
        let names = [name, "localhost", "127.0.0.1"].map(str::to_owned).to_vec();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a signature");
        let settings = TlsSettings {
            ca: self.dir.join("ca.pem"),
            certificate: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
            leader_name: "leader".to_owned(),
        };
        write(&settings.certificate, &certificate.pem());
        write(&settings.key, &key.serialize_pem());
        settings
    }

    /// Issues and loads.
    pub fn context(&self, name: &str, role: Role, clock: &Arc<dyn Clock>) -> Arc<TlsContext> {
        TlsContext::load(self.issue(name, role), clock.clone()).expect("good certificates")
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a writable directory");
}
