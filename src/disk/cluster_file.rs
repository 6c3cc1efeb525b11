//! Which cluster a data directory belongs to: the file `cluster.id`, made at its first start.
//!
//! Content, wrapped by [`super::atomic_file`]: version 1 (u8), cluster id (u64, little endian).

use std::path::Path;

use super::atomic_file::{read_integer, write_integer};
use super::error::LogError;
use super::fs::FileSystem;
use crate::ids::ClusterId;

const NAME: &str = "cluster.id";

/// Why a data directory is not used.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It belongs to another cluster.
    #[error("{dir} belongs to cluster {stored}, the configuration says cluster_id = {wanted}")]
    Foreign {
        /// The directory.
        dir: String,
        /// The cluster it belongs to.
        stored: ClusterId,
        /// The cluster it was started for.
        wanted: ClusterId,
    },
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] LogError),
}

/// The cluster the directory belongs to; `None` before its first start.
pub fn read(fs: &dyn FileSystem, dir: &Path) -> Result<Option<ClusterId>, LogError> {
    Ok(read_integer(fs, &dir.join(NAME))?.map(ClusterId))
}

/// Binds the directory to the cluster, durably, or refuses it if it belongs to another.
pub fn bind(fs: &dyn FileSystem, dir: &Path, wanted: ClusterId) -> Result<(), BindError> {
    match read(fs, dir)? {
        None => Ok(write_integer(fs, &dir.join(NAME), wanted.0)?),
        Some(stored) if stored == wanted => Ok(()),
        Some(stored) => Err(BindError::Foreign {
            dir: dir.display().to_string(),
            stored,
            wanted,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::mem::MemFileSystem;

    #[test]
    fn a_directory_stays_with_its_first_cluster() {
        let fs = MemFileSystem::default();
        let dir = Path::new("data");
        fs.create_dir_all(dir).unwrap();
        assert_eq!(read(&fs, dir).unwrap(), None);
        bind(&fs, dir, ClusterId(7)).unwrap();
        bind(&fs, dir, ClusterId(7)).unwrap();
        assert_eq!(read(&fs, dir).unwrap(), Some(ClusterId(7)));
        let error = bind(&fs, dir, ClusterId(8)).unwrap_err().to_string();
        assert_eq!(
            error,
            "data belongs to cluster 0000000000000007, the configuration says cluster_id = \
             0000000000000008"
        );
    }
}
