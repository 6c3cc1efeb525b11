//! Does the disk in memory lose what it should, and nothing else?

use super::*;
use crate::disk::fs::read_all;

fn disk_with(content: &[u8]) -> (MemFileSystem, Arc<dyn File>) {
    let fs = MemFileSystem::new();
    fs.create_dir_all(Path::new("/d")).expect("made");
    let file = fs.create(Path::new("/d/f")).expect("created");
    file.write_all_at(content, 0).expect("written");
    (fs, file)
}

fn seen(fs: &MemFileSystem) -> Option<Vec<u8>> {
    fs.content(Path::new("/d/f"))
}

#[test]
fn synced_data_survives_only_under_a_synced_name() {
    let (fs, file) = disk_with(b"data");
    file.sync_data().expect("synced");
    let unnamed = fs.fork();
    unnamed.crash(Loss::Everything);
    assert_eq!(seen(&unnamed), None);
    fs.sync_dir(Path::new("/d")).expect("synced");
    file.write_all_at(b"more", 4).expect("written");
    let lost = fs.crash(Loss::Everything);
    assert_eq!(lost.len(), 1);
    assert_eq!(seen(&fs).as_deref(), Some(&b"data"[..]));
    assert!(file.sync_data().is_err(), "the file is dead");
}

#[test]
fn any_sector_of_an_unsynced_write_may_be_lost() {
    let (fs, _file) = disk_with(&[1; 1200]);
    fs.sync_dir(Path::new("/d")).expect("synced");
    assert_eq!(fs.unsynced().len(), 3);
    fs.crash(Loss::Choose(&mut |at, _| at == 1));
    let content = seen(&fs).expect("there");
    assert_eq!(content, [vec![0; 512], vec![1; 512]].concat());
}

#[test]
fn a_cut_can_be_at_any_byte() {
    let (fs, _file) = disk_with(&[1; 1200]);
    fs.crash(Loss::BehindBytes(515));
    assert_eq!(seen(&fs), Some(vec![1; 515]));
}

#[test]
fn a_failed_sync_loses_what_reads_still_see() {
    let (fs, file) = disk_with(b"data");
    fs.sync_dir(Path::new("/d")).expect("synced");
    fs.fail(Operation::Sync, 0, Fault::Io);
    assert!(file.sync_data().is_err());
    file.sync_data().expect("nothing left to sync");
    assert_eq!(read_all(&*file).expect("read"), b"data");
    fs.crash(Loss::Nothing);
    assert_eq!(seen(&fs), Some(Vec::new()));
}

#[test]
fn names_are_lost_each_on_its_own() {
    let (fs, file) = disk_with(b"new");
    file.sync_data().expect("synced");
    fs.sync_dir(Path::new("/d")).expect("synced");
    fs.rename(Path::new("/d/f"), Path::new("/d/g"))
        .expect("renamed");
    let other = fs.create(Path::new("/d/f")).expect("created");
    other.write_all_at(b"x", 0).expect("written");
    let kept = fs.fork();
    kept.crash(Loss::Choose(&mut |_, what| {
        matches!(what, Unsynced::Rename(..))
    }));
    assert_eq!(kept.list(Path::new("/d")).expect("listed"), ["g"]);
    fs.crash(Loss::Everything);
    assert_eq!(seen(&fs).as_deref(), Some(&b"new"[..]));
}

#[test]
fn a_full_disk_takes_what_fits() {
    let (fs, file) = disk_with(b"1234");
    fs.set_capacity(Some(6));
    let error = file.write_all_at(b"5678", 4).expect_err("full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(seen(&fs).as_deref(), Some(&b"123456"[..]));
    assert_eq!(fs.free_space(Path::new("/d")).expect("asked"), 0);
    file.write_all_at(b"abc", 0)
        .expect("there is space already");
}

#[test]
fn the_nth_call_fails() {
    let (fs, file) = disk_with(b"");
    fs.fail(Operation::Write, 1, Fault::ShortWrite);
    file.write_all_at(b"ab", 0).expect("the first");
    assert!(file.write_all_at(b"cdef", 2).is_err());
    assert_eq!(seen(&fs).as_deref(), Some(&b"abcd"[..]));
    file.write_all_at(b"gh", 4).expect("the third");
}
