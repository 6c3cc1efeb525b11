//! `tolerex certs`: a development certificate authority, and one certificate a process.
//!
//! | file | holds |
//! |---|---|
//! | `ca.crt`, `NAME.crt` | certificate, PEM |
//! | `ca.key`, `NAME.key` | ECDSA P-256 key, PKCS#8 PEM |
//!
//! Directory and files are for their owner only from the moment they exist ([`private`]).
//!
//! The CN of a certificate is the process's role, which decides what it may do; its first SAN is
//! the node's name, followed by `localhost`, both loopback addresses and those given. A file that
//! exists is never overwritten. Certificates last ten years: they are for development, where
//! nothing renews them.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::args::{CertsAction, Role};
use super::exit::{ToolError, print, tell};
use crate::clock::{Clock, SystemClock};
use crate::config::kinds::is_name;
use crate::disk::private;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a certificate is good, from a day before it is made (clocks differ).
const LIFETIME: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// Runs `tolerex certs init|issue`.
pub fn run(action: &CertsAction) -> Result<(), ToolError> {
    let made = match action {
        CertsAction::Init { dir } => {
            let made = init(dir)?;
            for warning in private::warnings(dir, &[]) {
                tell(&format!("warning: {warning}"));
            }
            made
        }
        CertsAction::Issue {
            dir,
            name,
            role,
            addresses,
        } => {
            if !is_name(name) || name == "ca" {
                let accepted = crate::config::Kind::Name;
                let text = format!("--name {name}: accepted: {accepted}, but not `ca`");
                return Err(ToolError::usage(text));
            }
            issue(dir, name, *role, addresses)?
        }
    };
    let lines: String = made
        .iter()
        .map(|path| format!("{}\n", path.display()))
        .collect();
    print(lines.as_bytes())
}

/// Makes the authority in `dir`; gives the files made.
pub fn init(dir: &Path) -> Result<[PathBuf; 2]> {
    private::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "Tolerex development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    write_pair(dir, "ca", &certificate.pem(), &key)
}

/// Makes the certificate of one process, signed by the authority in `dir`; gives the files made.
pub fn issue(dir: &Path, name: &str, role: Role, addresses: &[String]) -> Result<[PathBuf; 2]> {
    let read = |file: &str| {
        let path = dir.join(file);
        fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {} (`tolerex certs init` makes it)",
                path.display()
            )
        })
    };
    let ca_key = KeyPair::from_pem(&read("ca.key")?).context("ca.key is no key")?;
    let ca = Issuer::from_ca_cert_pem(&read("ca.crt")?, ca_key).context("ca.crt is damaged")?;
    let mut names = vec![name.to_owned()];
    for more in ["localhost", "127.0.0.1", "::1"]
        .into_iter()
        .map(str::to_owned)
    {
        names.push(more);
    }
    names.extend(addresses.iter().filter(|more| !more.is_empty()).cloned());
    let mut params = CertificateParams::new(names).context("an --address is not valid")?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, role.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match role {
        // Leaders and members call each other in both directions.
        Role::Leader | Role::Member => {
            vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ]
        }
        Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &ca)?;
    write_pair(dir, name, &certificate.pem(), &key)
}

fn set_validity(params: &mut CertificateParams) {
    let now = Duration::from_millis(SystemClock::new().wall_ms());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + now + LIFETIME;
}

/// Writes key and certificate, the key first: a certificate that stands there has its key.
fn write_pair(dir: &Path, stem: &str, certificate: &str, key: &KeyPair) -> Result<[PathBuf; 2]> {
    let (crt, pem) = (
        dir.join(format!("{stem}.crt")),
        dir.join(format!("{stem}.key")),
    );
    for path in [&crt, &pem] {
        if path.exists() {
            bail!("{} exists and is left as it is", path.display());
        }
    }
    write_new(&pem, &key.serialize_pem())?;
    write_new(&crt, certificate)?;
    Ok([crt, pem])
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    let opened = private::options().write(true).create_new(true).open(path);
    let mut file = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} exists and is left as it is", path.display())
        }
        opened => opened.with_context(|| format!("cannot create {}", path.display()))?,
    };
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use x509_parser::extensions::GeneralName;
    use x509_parser::pem::parse_x509_pem;

    #[test]
    fn a_certificate_says_role_and_name_and_its_key_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        init(dir.path()).expect("an authority");
        let more = ["db.example".to_owned(), "10.0.0.1".to_owned()];
        let [crt, key] = issue(dir.path(), "member-1", Role::Member, &more).expect("a pair");
        let ca = fs::read(dir.path().join("ca.crt")).expect("the authority");
        let (_, ca) = parse_x509_pem(&ca).expect("PEM");
        let ca = ca.parse_x509().expect("X.509");
        let (_, pem) = parse_x509_pem(&fs::read(&crt).expect("a file")).expect("PEM");
        let certificate = pem.parse_x509().expect("X.509");
        assert!(ca.is_ca() && !certificate.is_ca());
        assert_eq!(certificate.subject().to_string(), "CN=member");
        assert_eq!(certificate.issuer(), ca.subject());
        certificate
            .verify_signature(Some(ca.public_key()))
            .expect("signed by the authority");
        let names = certificate
            .subject_alternative_name()
            .expect("one")
            .expect("one");
        let names = &names.value.general_names;
        assert_eq!(names[0], GeneralName::DNSName("member-1"));
        assert_eq!(names.len(), 6);
        for secret in [key, dir.path().join("ca.key")] {
            let mode = fs::metadata(secret).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn what_exists_is_never_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        init(dir.path()).expect("an authority");
        let before = fs::read(dir.path().join("ca.key")).expect("a key");
        let error = init(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("ca.crt exists"), "{error}");
        assert_eq!(fs::read(dir.path().join("ca.key")).expect("a key"), before);
    }

    #[test]
    fn without_an_authority_nothing_is_issued() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = issue(dir.path(), "x", Role::Client, &[]).expect_err("refused");
        assert!(error.to_string().contains("tolerex certs init"), "{error}");
    }
}
