//! Opening a member's store: which engine its data directory has, and the engine in its write mode.
//!
//! An engine owns one directory in the data directory: `log/` (see `disk::log`) or `files/` (see
//! [`super::files_engine`]). A data directory has one engine for good: another one would find
//! nothing, and the copies that leaders count on would be lost without a word. The write mode is a
//! property of a run, not of the data, and may be another one at each start.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::fs::FileSystem;
use crate::disk::log::{Filler, LogError, LogOptions, Recovery};
use crate::disk::segment::parse_file_name;
use crate::storage::buffer::{BufferedEngine, Space};
use crate::storage::compaction::Compactor;
use crate::storage::files_engine::{FILE_BYTES, FilesEngine, FilesOptions};
use crate::storage::files_recovery::FORMAT_NAME;
use crate::storage::log_engine::LogEngine;
use crate::storage::{Engine, EngineKind, WriteMode};

/// What a record takes in the log beside key and payload, in bytes, at most: its header and its
/// share of a group's.
const LOG_RECORD_BYTES: u64 = 128;

/// How a store is opened.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Which engine.
    pub engine: EngineKind,
    /// In which write mode.
    pub io: WriteMode,
    /// Segments of the `log` engine, and for both the reserve.
    pub log: LogOptions,
}

/// An open store.
pub struct Store {
    /// Its write side.
    pub engine: Box<dyn Engine>,
    /// The work of a thread that runs beside it, if it has one.
    pub filler: Option<Filler>,
    /// The same.
    pub compactor: Option<Compactor>,
    /// What was cut or found damaged, for the caller to report.
    pub recovery: Recovery,
}

/// The data directory has another engine.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} holds data of the engine `{found}`, and `{wanted}` is wanted: give engine = \"{found}\", \
     or another data directory",
    dir.display()
)]
pub struct OtherEngine {
    /// The data directory.
    pub dir: PathBuf,
    /// The engine that it has.
    pub found: EngineKind,
    /// The engine that was asked for.
    pub wanted: EngineKind,
}

/// Where an engine keeps its files.
pub fn engine_dir(data_dir: &Path, engine: EngineKind) -> PathBuf {
    data_dir.join(engine.to_string())
}

/// Whether the engine's files are in the data directory.
pub fn is_present(fs: &dyn FileSystem, data_dir: &Path, engine: EngineKind) -> io::Result<bool> {
    let names = match fs.list(&engine_dir(data_dir, engine)) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(match engine {
        // A log always has a segment.
        EngineKind::Log => names.iter().any(|name| parse_file_name(name).is_some()),
        EngineKind::Files => names.iter().any(|name| name == FORMAT_NAME),
    })
}

/// Refuses an engine that is not the one of the data directory; a new directory takes any.
pub fn check_engine(
    fs: &dyn FileSystem,
    data_dir: &Path,
    wanted: EngineKind,
) -> io::Result<Result<(), OtherEngine>> {
    for found in [EngineKind::Log, EngineKind::Files] {
        if found != wanted && is_present(fs, data_dir, found)? {
            return Ok(Err(OtherEngine {
                dir: data_dir.to_owned(),
                found,
                wanted,
            }));
        }
    }
    Ok(Ok(()))
}

/// Opens the store in a data directory, or makes one. To be called after [`check_engine`].
pub fn open(
    fs: &Arc<dyn FileSystem>,
    data_dir: &Path,
    options: &StoreOptions,
) -> Result<Store, LogError> {
    let dir = engine_dir(data_dir, options.engine);
    let (engine, threads, recovery, record_bytes) = match options.engine {
        EngineKind::Log => {
            let (engine, recovery) = LogEngine::open(Arc::clone(fs), &dir, options.log)?;
            let engine = match options.io {
                WriteMode::Buffered | WriteMode::Unbuffered => engine.unsynced(),
                WriteMode::Sync => engine,
            };
            let threads = (engine.filler(), engine.compactor());
            let engine: Box<dyn Engine> = Box::new(engine);
            (engine, Some(threads), recovery, LOG_RECORD_BYTES)
        }
        EngineKind::Files => {
            let files = FilesOptions {
                synced: options.io == WriteMode::Sync,
                reserve_bytes: options.log.reserve_bytes,
            };
            let (engine, recovery) = FilesEngine::open(Arc::clone(fs), &dir, files)?;
            let engine: Box<dyn Engine> = Box::new(engine);
            (engine, None, recovery, FILE_BYTES)
        }
    };
    let space = Space {
        fs: Arc::clone(fs),
        dir,
        reserve_bytes: options.log.reserve_bytes,
        record_bytes,
    };
    let engine: Box<dyn Engine> = match options.io {
        WriteMode::Buffered => Box::new(BufferedEngine::new(engine, space)),
        WriteMode::Unbuffered | WriteMode::Sync => engine,
    };
    let (filler, compactor) = threads.unzip();
    Ok(Store {
        engine,
        filler,
        compactor,
        recovery,
    })
}
