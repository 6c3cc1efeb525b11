//! Hint files: what is damaged, of another log or left behind is never believed.

use super::*;

#[test]
fn a_hint_that_is_cut_or_has_a_flipped_bit_is_passed_over_and_written_again() {
    let mut rig = used();
    while rig.compactor.hint_one().unwrap() {}
    let path = hints::path(DIR.as_ref(), 2);
    let good = rig.fs.content(&path).unwrap();
    let check = |fs: &MemFileSystem| {
        check_hints(fs);
        let (engine, mut compactor) = open(fs);
        assert!(!fs.exists(&path).unwrap());
        assert_eq!(contents(&engine), expected(&rig.model));
        assert!(compactor.hint_one().unwrap());
        assert_eq!(fs.content(&path).unwrap(), good);
        assert!(!compactor.hint_one().unwrap(), "the others were good");
    };
    for at in 0..good.len() as u64 {
        let (cut, flipped) = (rig.fs.fork(), rig.fs.fork());
        cut.open(&path).unwrap().set_len(at).unwrap();
        check(&cut);
        assert!(flipped.flip_bit(&path, at, (at % 8) as u8));
        check(&flipped);
    }
    rig.fs.remove(&path).unwrap();
    check(&rig.fs);
}

#[test]
fn hints_of_an_older_log_and_of_segments_that_are_gone_are_not_believed_and_go() {
    let mut rig = used();
    while rig.compactor.hint_one().unwrap() {}
    // The same segments, made by another opening and of other content.
    let fs = MemFileSystem::new();
    let options = LogOptions {
        segment_bytes: 4 << 10,
        reserve_bytes: 0,
        salt: 2,
    };
    let disk = Arc::new(fs.clone());
    let (mut engine, _) = LogEngine::open(disk, DIR.as_ref(), options).unwrap();
    for number in 100..140 {
        let (revision, payload) = (Revision::from_u64(number), Bytes::from(vec![1; 300]));
        let stored = engine.store(revision, &Key::Id(number), &payload);
        stored.unwrap();
        if number % 3 == 0 {
            engine.commit().unwrap();
        }
    }
    engine.commit().unwrap();
    drop(engine);
    let old = hints::list(&rig.fs, DIR.as_ref()).unwrap();
    let last = fs.list(DIR.as_ref()).unwrap().len();
    assert!(old.len() > last, "{old:?}");
    for &segment in &old {
        let path = hints::path(DIR.as_ref(), segment);
        let file = fs.create(&path).unwrap();
        let content = rig.fs.content(&path).unwrap();
        file.write_all_at(&content, 0).unwrap();
    }
    check_hints(&fs);
    let (engine, compactor) = open(&fs);
    assert_eq!(engine.reader().counters().records, 40);
    assert!(compactor.hinted.is_empty());
    assert!(hints::list(&fs, DIR.as_ref()).unwrap().is_empty());
}

#[test]
fn a_segment_takes_its_hint_along() {
    let mut rig = used();
    while rig.compactor.hint_one().unwrap() {}
    let before = hints::list(&rig.fs, DIR.as_ref()).unwrap();
    assert_eq!(
        before.len(),
        rig.segments() - 1,
        "all but the last have one"
    );
    assert!(rig.compact());
    let after = hints::list(&rig.fs, DIR.as_ref()).unwrap();
    assert_eq!(after.len(), rig.segments() - 1);
    assert!(!after.contains(&1));
}

/// With a good hint, damage in its segment is found when a record is read: that one is reported
/// with file and offset, all others are right, and nothing is missing or comes back.
#[test]
fn damage_behind_a_good_hint_is_reported_by_the_read_and_never_returned() {
    let mut rig = used();
    while rig.compactor.hint_one().unwrap() {}
    let expected = expected(&rig.model);
    let place = rig
        .compactor
        .shared
        .index
        .read()
        .find(Revision::from_u64(3));
    let location = place.unwrap().location;
    let path = format!("{DIR}/{:08}.log", location.segment);
    let length = rig.fs.content(path.as_ref()).unwrap().len() as u64;
    let mut reported = 0;
    for at in 0..length {
        let fs = rig.fs.fork();
        assert!(fs.flip_bit(path.as_ref(), at, (at % 8) as u8));
        let (engine, _) = open(&fs);
        let reader = engine.reader();
        for number in 0..40 {
            match reader.fetch(Revision::from_u64(number)) {
                Ok(found) => {
                    let payload = found.map(|(_, payload)| payload);
                    assert_eq!(
                        payload.as_ref(),
                        expected.get(&number),
                        "{number}, byte {at}"
                    );
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        expected.contains_key(&number) && error.contains(&path),
                        "{error}"
                    );
                    reported += 1;
                }
            }
        }
        let start = u64::from(location.offset);
        if (start..start + u64::from(location.length)).contains(&at) {
            let error = reader.fetch(Revision::from_u64(3)).unwrap_err().to_string();
            assert!(error.contains(&format!("offset {start}")), "{error}");
        }
    }
    assert!(reported >= location.length);
}

#[test]
fn a_segment_that_is_shorter_than_its_end_is_read_whatever_its_hint_says() {
    let mut rig = used();
    while rig.compactor.hint_one().unwrap() {}
    let path = Path::new("log/00000002.log");
    let end = rig.fs.content(path).unwrap().len() as u64 - 512;
    rig.fs.open(path).unwrap().set_len(end).unwrap();
    let disk = Arc::new(rig.fs.clone());
    let (_, recovery) = LogEngine::open(disk, DIR.as_ref(), LogOptions::default()).unwrap();
    let reported: Vec<String> = recovery.damaged.iter().map(ToString::to_string).collect();
    assert!(
        reported
            .iter()
            .all(|damage| damage.contains("log/00000002.log")),
        "{reported:?}"
    );
    assert_eq!(reported.len(), 1);
}
