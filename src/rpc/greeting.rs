//! stub
/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// stub
    #[error("stub")]
    Stub,
}
