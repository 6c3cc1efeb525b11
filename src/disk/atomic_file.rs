//! A small file that is replaced as a whole: after a crash it has the old content or the new.
//!
//! Written beside its place (`<name>.tmp`), synced, renamed, its directory synced; when `write`
//! returns, the new content is durable. After [`LogError::Refused`] the old content is there, after
//! any other error of `write` either may be; the unfinished file is removed, so that it takes no
//! space of a full disk.
//!
//! Little-endian:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | `TLRXFIL` and 0 |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | CRC-32C of bytes 0..12 and the content |
//! | 16 | .. | the content |

use std::ffi::OsString;
use std::io;
use std::path::Path;

use super::error::LogError;
use super::fs::{FileSystem, read_all};
use super::record::u32_at;

const MAGIC: [u8; 8] = *b"TLRXFIL\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;

/// The content of the file; `None` if there is no such file. Damage is an error.
pub fn read(fs: &dyn FileSystem, path: &Path) -> Result<Option<Vec<u8>>, LogError> {
    let shown = path.display().to_string();
    let read = fs.open(path).and_then(|file| read_all(&*file));
    let mut bytes = match read {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(LogError::Io {
                action: "read",
                file: shown,
                source,
            });
        }
    };
    let damaged = |offset, what: String| LogError::Damaged {
        file: shown.clone(),
        offset,
        what,
    };
    let Some(expected) = u32_at(&bytes, 12).filter(|_| bytes.starts_with(&MAGIC)) else {
        return Err(damaged(
            0,
            "this is not the beginning of such a file".to_owned(),
        ));
    };
    let content = bytes.split_off(HEADER_BYTES);
    let found = checksum(&bytes, &content);
    if found != expected {
        let what = format!("the checksum should be {expected:08x} and is {found:08x}");
        return Err(damaged(12, what));
    }
    match u32_at(&bytes, 8) {
        Some(VERSION) => Ok(Some(content)),
        version => Err(LogError::Version {
            file: shown.clone(),
            version: version.unwrap_or_default(),
            known: VERSION,
        }),
    }
}

/// The version of the content of files that hold one integer.
const INTEGER_VERSION: u8 = 1;

/// The integer that [`write_integer`] put in the file; `None` if there is no such file.
pub fn read_integer(fs: &dyn FileSystem, path: &Path) -> Result<Option<u64>, LogError> {
    let Some(content) = read(fs, path)? else {
        return Ok(None);
    };
    let value = match content.split_first() {
        Some((&INTEGER_VERSION, rest)) => <[u8; 8]>::try_from(rest).ok(),
        Some(_) | None => None,
    };
    match value {
        Some(value) => Ok(Some(u64::from_le_bytes(value))),
        None => Err(LogError::Damaged {
            file: path.display().to_string(),
            offset: 0,
            what: format!("{} bytes of no known format", content.len()),
        }),
    }
}

/// Makes the file hold one integer.
pub fn write_integer(fs: &dyn FileSystem, path: &Path, value: u64) -> Result<(), LogError> {
    let mut content = vec![INTEGER_VERSION];
    content.extend_from_slice(&value.to_le_bytes());
    write(fs, path, &content)
}

/// Replaces the content of the file, or makes it, in an existing directory.
pub fn write(fs: &dyn FileSystem, path: &Path, content: &[u8]) -> Result<(), LogError> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    let checksum = checksum(&bytes, content);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(content);
    let mut beside = OsString::from(path);
    beside.push(".tmp");
    let beside = Path::new(&beside);
    let replace = || -> io::Result<()> {
        if fs.exists(beside)? {
            fs.remove(beside)?;
        }
        let file = fs.create(beside)?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        fs.rename_durably(beside, path)
    };
    replace().map_err(|source| {
        // If it cannot be removed, the next write does it.
        let removed = fs.remove(beside);
        log::trace!("{} removed: {removed:?}", beside.display());
        LogError::from_io("write", path.display().to_string(), source)
    })
}

fn checksum(header: &[u8], content: &[u8]) -> u32 {
    let header = header.get(..12).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c(header), content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};

    fn path() -> &'static Path {
        Path::new("/d/file")
    }

    fn disk() -> MemFileSystem {
        let fs = MemFileSystem::new();
        fs.create_dir_all(Path::new("/d")).expect("made");
        fs
    }

    #[test]
    fn what_was_written_is_read_after_a_crash() {
        let fs = disk();
        assert!(matches!(read(&fs, path()), Ok(None)));
        for content in [&b""[..], b"one", &[7; 2000]] {
            write(&fs, path(), content).expect("written");
            fs.crash(Loss::Everything);
            let found = read(&fs, path()).expect("read");
            assert_eq!(found.as_deref(), Some(content));
        }
    }

    #[test]
    fn any_failure_and_any_crash_leave_the_old_content_or_the_new() {
        for fault in [Fault::Io, Fault::NoSpace, Fault::ShortWrite] {
            for call in 0..12 {
                for seed in 0..20 {
                    let fs = disk();
                    write(&fs, path(), b"old").expect("written");
                    fs.fail(Operation::Any, call, fault);
                    let written = write(&fs, path(), &[9; 1000]).is_ok();
                    fs.crash(Loss::Random(seed));
                    let found = read(&fs, path()).expect("intact").expect("there");
                    assert!(found == [9; 1000] || (found == b"old" && !written));
                    write(&fs, path(), b"next").expect("remains are no hindrance");
                }
            }
        }
    }

    #[test]
    fn a_failed_sync_of_the_name_is_no_full_disk() {
        let fs = disk();
        fs.fail(Operation::SyncDir, 0, Fault::NoSpace);
        let written = write(&fs, path(), b"content");
        assert!(matches!(written, Err(LogError::Io { .. })), "{written:?}");
    }

    #[test]
    fn no_flipped_bit_and_no_cut_is_returned() {
        let fs = disk();
        write(&fs, path(), b"content").expect("written");
        let length = fs.content(path()).expect("there").len() as u64;
        for bit in 0..length * 8 {
            let fs = fs.fork();
            assert!(fs.flip_bit(path(), bit / 8, (bit % 8) as u8));
            let error = read(&fs, path()).expect_err("damaged").to_string();
            assert!(error.contains("/d/file is damaged"), "{error}");
        }
        for len in 0..length {
            let fs = fs.fork();
            fs.open(path()).expect("open").set_len(len).expect("cut");
            assert!(read(&fs, path()).is_err(), "{len}");
        }
    }
}
