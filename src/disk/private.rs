//! Files and directories that only their owner can use: modes 0600 and 0700, whatever the umask.
//!
//! Messages, journals, keys and logs of a process are for its user alone. Every place that makes a
//! file or a directory goes through [`options`], [`create`], [`create_dir`], [`create_dir_all`],
//! or [`OsFileSystem`](super::fs::OsFileSystem), which asks for the same modes. The binaries set
//! the umask too ([`restrict_umask`]): for what libraries create, and because a umask may take
//! rights from the owner. Nothing that exists is changed: [`warnings`] tells what is wider.
//!
//! Known limit: access control lists are not looked at.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

/// The mode of a file: its owner reads and writes.
pub const FILE_MODE: u32 = 0o600;

/// The mode of a directory: its owner reads, writes and searches.
pub const DIR_MODE: u32 = 0o700;

/// The bits that give rights to anybody but the owner.
const OTHERS: u32 = 0o077;

/// How many entries of a directory tree [`warnings`] looks at. A member of the engine `files` has
/// one for each message: looking at all would delay its start by seconds.
const ENTRIES_MAX: usize = 1000;

/// How deep [`warnings`] looks: the files of a process lie at most this far below its directory.
const DEPTH_MAX: usize = 4;

/// Makes the process create files and directories for its owner only. For the `main` of a binary:
/// a library does not change what belongs to the whole process.
pub fn restrict_umask() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// Options to open a file, which is for its owner only if it is created.
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(FILE_MODE);
    options
}

/// Creates a file or empties the one that exists; it is for its owner only either way.
pub fn create(path: &Path) -> io::Result<File> {
    let file = options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    Ok(file)
}

/// Creates a directory; an error if it exists.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIR_MODE).create(dir)
}

/// Creates a directory and those above it that are missing.
pub fn create_dir_all(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir)
}

/// One line for the directory, if it or something in it gives rights to other users, and one for
/// each such file of `files`. Each line names the command that mends it. What does not exist, or
/// cannot be looked at, is not reported here.
pub fn warnings(dir: &Path, files: &[&Path]) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some((path, mode)) = widest_below(dir) {
        let place = if path == dir {
            String::new()
        } else {
            format!("{} in ", path.display())
        };
        lines.push(format!(
            "{place}the directory {} is open to other users (mode {mode:04o}); this closes it: \
             chmod -R go= {}",
            dir.display(),
            quoted(dir)
        ));
    }
    for file in files {
        if let Some(mode) = fs::metadata(file).ok().and_then(|meta| wider(&meta)) {
            lines.push(format!(
                "the file {} is open to other users (mode {mode:04o}); this closes it: \
                 chmod go= {}",
                file.display(),
                quoted(file)
            ));
        }
    }
    lines
}

/// The mode, if it gives rights to others.
fn wider(meta: &fs::Metadata) -> Option<u32> {
    let mode = meta.mode() & 0o7777;
    (mode & OTHERS != 0).then_some(mode)
}

/// The first path in a tree that gives rights to others, its root first.
fn widest_below(root: &Path) -> Option<(PathBuf, u32)> {
    if let Some(mode) = wider(&fs::metadata(root).ok()?) {
        return Some((root.to_owned(), mode));
    }
    let mut left = ENTRIES_MAX;
    let mut dirs = vec![(root.to_owned(), 0)];
    while let Some((dir, depth)) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if left == 0 {
                return None;
            }
            left -= 1;
            // The mode of a symbolic link means nothing, and what it leads to is not ours.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_symlink() {
                continue;
            }
            if let Some(mode) = wider(&meta) {
                return Some((entry.path(), mode));
            }
            if meta.is_dir() && depth + 1 < DEPTH_MAX {
                dirs.push((entry.path(), depth + 1));
            }
        }
    }
    None
}

/// A path as a word of a shell's command.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@,".contains(c);
    if text.chars().all(is_plain) && !text.starts_with('-') {
        return text;
    }
    format!("-- '{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it exists").mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("changed");
    }

    #[test]
    fn what_is_created_is_for_its_owner_only() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("a/b");
        create_dir_all(&dir).expect("made");
        create_dir_all(&dir).expect("is there");
        assert_eq!((mode(&dir), mode(&root.path().join("a"))), (0o700, 0o700));
        let path = dir.join("new");
        create(&path).expect("created");
        assert_eq!(mode(&path), 0o600);
        set_mode(&path, 0o666);
        create(&path).expect("emptied");
        assert_eq!(mode(&path), 0o600);
        let path = dir.join("appended");
        let opened = options().append(true).create(true).open(&path);
        opened.expect("created");
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_wider_directory_is_named_once_and_a_wider_file_by_itself() {
        let root = tempfile::tempdir().expect("a directory");
        let (dir, key) = (root.path().join("data"), root.path().join("it's.key"));
        create_dir_all(&dir.join("log")).expect("made");
        for path in [dir.join("log/1"), dir.join("log/2"), key.clone()] {
            create(&path).expect("created");
        }
        assert_eq!(warnings(&dir, &[&key]), Vec::<String>::new());
        for name in ["log/1", "log/2"] {
            set_mode(&dir.join(name), 0o604);
        }
        set_mode(&key, 0o640);
        let lines = warnings(&dir, &[&key, &root.path().join("none")]);
        assert_eq!(lines.len(), 2, "{lines:?}");
        let close = format!("chmod -R go= {}", dir.display());
        assert!(lines[0].contains("/data/log/") && lines[0].ends_with(&close));
        assert!(lines[0].contains("(mode 0604)"), "{}", lines[0]);
        assert!(lines[1].contains("(mode 0640)"), "{}", lines[1]);
        assert!(lines[1].ends_with(r"/it'\''s.key'"), "{}", lines[1]);
        set_mode(&dir, 0o755);
        let lines = warnings(&dir, &[]);
        assert!(lines[0].starts_with(&format!("the directory {}", dir.display())));
        assert!(warnings(&root.path().join("none"), &[]).is_empty());
    }
}
