//! stub
use std::path::PathBuf;
use std::sync::Arc;
use crate::clock::Clock;
/// Where the PEM files of a process are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The cluster's CA certificate (or several).
    pub ca: PathBuf,
    /// This process's certificate, then intermediates if any.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}
/// What is wrong with certificates, ours or a peer's.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// stub
    #[error("stub")]
    Stub,
}
/// The certificates in use.
pub struct TlsContext {}
impl TlsContext {
    /// Loads and checks.
    pub fn load(_settings: TlsSettings, _clock: Arc<dyn Clock>) -> Result<Arc<TlsContext>, TlsError> { unimplemented!() }
    /// Reads the files again; on an error the last good ones stay in use. New connections use the new ones.
    pub fn reload(&self) -> Result<(), TlsError> { unimplemented!() }
}
