//! Golden scripts of the log: operations, every call to the disk that they make, and dumps of the
//! files. `UPDATE_GOLDENFILES=1 cargo test disk::` records `testscripts/`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fs::FileSystem;
use super::log::{Location, Log, LogOptions, LogReader, Position, Record, SegmentInfo};
use super::mem::{Fault, Loss, MemFileSystem, Operation};
use super::record::Seed;
use super::segment::{DATA_START, GROUP_HEADER_BYTES, GroupHeader, SECTOR_BYTES, SegmentHeader};
use crate::threads::StopSignal;

/// The commands of the scripts.
#[derive(goldenscript::Command)]
enum Command {
    /// Opens the log (again), with small segments unless told otherwise.
    Open {
        #[arg(key)]
        segment: Option<u64>,
        #[arg(key)]
        reserve: Option<u64>,
    },
    /// Stages a record, its payload filled up to `size` bytes.
    Stage {
        number: u64,
        payload: String,
        #[arg(key)]
        size: Option<usize>,
    },
    /// Writes the staged group.
    Write,
    /// The same, using the reserve.
    WriteReserved,
    /// Forgets the staged group.
    Discard,
    /// Syncs.
    Sync,
    /// Tells the disk what is synced.
    Idle,
    /// Removes the segments before this one.
    DropHead(u32),
    /// Takes a segment out of the log; its file stays.
    Retire(u32),
    /// Removes the file of a retired segment.
    Unlink(u32),
    /// Lists the segments.
    Segments,
    /// Fills a segment ahead.
    Fill,
    /// Reads a record that was staged or visited.
    Read(u64),
    /// Power fails: `none`, `all`, or the numbers of the unsynced changes that survive.
    Crash { survive: Vec<String> },
    /// What a crash could lose.
    Unsynced,
    /// Turns a bit.
    Flip { file: String, offset: u64 },
    /// Removes a file behind the log's back.
    Remove { file: String },
    /// Makes a call fail: `write`, `sync`, ...; `io`, `full` or `short`.
    Fail {
        operation: String,
        fault: String,
        #[arg(key)]
        after: Option<u64>,
    },
    /// Limits the bytes of the disk.
    Capacity(u64),
    /// Shows all files.
    Dump,
}

struct Runner {
    fs: MemFileSystem,
    log: Option<Log>,
    reader: Option<LogReader>,
    locations: BTreeMap<u64, Location>,
}

fn dir() -> &'static Path {
    Path::new("/log")
}

impl Runner {
    fn new() -> Runner {
        let fs = MemFileSystem::new();
        fs.start_trace();
        Runner {
            fs,
            log: None,
            reader: None,
            locations: BTreeMap::new(),
        }
    }

    fn log(&mut self) -> Result<&mut Log, Box<dyn Error>> {
        self.log
            .as_mut()
            .ok_or_else(|| "the log is not open".into())
    }

    fn open(
        &mut self,
        segment: Option<u64>,
        reserve: Option<u64>,
    ) -> Result<String, Box<dyn Error>> {
        self.log = None;
        let mut output = String::new();
        let options = LogOptions {
            segment_bytes: segment.unwrap_or(4096),
            reserve_bytes: reserve.unwrap_or(0),
            salt: 7,
        };
        let locations = &mut self.locations;
        let opened = Log::open(
            Arc::new(self.fs.clone()),
            dir(),
            options,
            &mut |location, record| {
                locations.insert(record.number, location);
                _ = writeln!(output, "visit {} at {}", shown(record), place(location));
                Ok(())
            },
        );
        let (log, recovery) = opened?;
        for damage in recovery.damaged {
            writeln!(output, "{damage}")?;
        }
        for repaired in recovery.repaired {
            writeln!(output, "repaired: {repaired}")?;
        }
        if let Some(cut) = recovery.cut {
            writeln!(output, "{cut}")?;
        }
        self.reader = Some(log.reader());
        self.log = Some(log);
        Ok(output)
    }

    fn crash(&mut self, survive: &[String]) -> Result<String, Box<dyn Error>> {
        self.log = None;
        let lost = match survive {
            [all] if all == "all" => self.fs.crash(Loss::Nothing),
            [none] if none == "none" => self.fs.crash(Loss::Everything),
            chosen => {
                let chosen: Vec<usize> = chosen
                    .iter()
                    .map(|at| at.parse())
                    .collect::<Result<_, _>>()?;
                self.fs
                    .crash(Loss::Choose(&mut |at, _| chosen.contains(&at)))
            }
        };
        let mut output = String::new();
        for lost in lost {
            writeln!(output, "lost {lost:?}")?;
        }
        Ok(output)
    }

    fn dump(&self) -> Result<String, Box<dyn Error>> {
        let mut output = String::new();
        for name in self.fs.list(dir())? {
            let bytes = self.fs.content(&dir().join(&name)).unwrap_or_default();
            writeln!(output, "{name}: {} bytes", bytes.len())?;
            let header = bytes.get(..SECTOR_BYTES).and_then(SegmentHeader::decode);
            let Some((_, header)) = header else {
                writeln!(output, "  no header")?;
                continue;
            };
            let previous = header
                .previous_end
                .map_or("-".to_owned(), |end| end.to_string());
            writeln!(
                output,
                "  number {} epoch {} previous end {previous}",
                header.number, header.epoch
            )?;
            dump_groups(&mut output, &bytes, &header)?;
        }
        Ok(output)
    }
}

fn dump_groups(output: &mut String, bytes: &[u8], header: &SegmentHeader) -> std::fmt::Result {
    let seed = Seed::of(header.salt);
    let mut start = DATA_START as usize;
    while start < bytes.len() {
        let position = Position {
            segment: header.number,
            offset: start as u32,
        };
        let rest = &bytes[start..];
        let Some(group) = GroupHeader::decode(seed, position, rest) else {
            let sector = &rest[..rest.len().min(SECTOR_BYTES)];
            if sector.iter().any(|byte| *byte != 0) {
                writeln!(output, "  {position} no group")?;
            }
            start += SECTOR_BYTES;
            continue;
        };
        let GroupHeader {
            synced,
            epoch,
            length,
            count,
            ..
        } = group;
        writeln!(
            output,
            "  {position} synced {synced} epoch {epoch} length {length} count {count}"
        )?;
        let end = (GROUP_HEADER_BYTES + length as usize).min(rest.len());
        let mut body = &rest[GROUP_HEADER_BYTES.min(end)..end];
        while !body.is_empty() {
            let Ok(record) = Record::decode(seed, body) else {
                writeln!(output, "    bad record")?;
                break;
            };
            writeln!(output, "    {}", shown(&record))?;
            body = &body[record.encoded_len()..];
        }
        start += group.size();
    }
    Ok(())
}

fn parse_fault(operation: &str, fault: &str) -> Result<(Operation, Fault), Box<dyn Error>> {
    let operation = match operation {
        "write" => Operation::Write,
        "sync" => Operation::Sync,
        "read" => Operation::Read,
        other => return Err(format!("unknown operation {other}").into()),
    };
    let fault = match fault {
        "io" => Fault::Io,
        "full" => Fault::NoSpace,
        "short" => Fault::ShortWrite,
        other => return Err(format!("unknown fault {other}").into()),
    };
    Ok((operation, fault))
}

fn shown(record: &Record<'_>) -> String {
    let text = String::from_utf8_lossy(record.payload);
    let text = text.trim_end_matches('.');
    format!("{}={text} ({} bytes)", record.number, record.payload.len())
}

fn place(location: Location) -> String {
    format!(
        "{}:{}+{}",
        location.segment, location.offset, location.length
    )
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(
        &mut self,
        command: &Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut output = String::new();
        match command {
            Command::Open { segment, reserve } => output = self.open(*segment, *reserve)?,
            Command::Stage {
                number,
                payload,
                size,
            } => {
                let payload = format!("{payload:.<width$}", width = size.unwrap_or(0));
                let payload = payload.as_bytes();
                let record = Record {
                    kind: 1,
                    number: *number,
                    key: b"k",
                    payload,
                };
                let location = self.log()?.stage(&record)?;
                self.locations.insert(*number, location);
                writeln!(output, "at {}", place(location))?;
            }
            Command::Write => self.log()?.write()?,
            Command::WriteReserved => self.log()?.write_reserved()?,
            Command::Discard => self.log()?.discard(),
            Command::Sync => self.log()?.sync()?,
            Command::Idle => self.log()?.idle()?,
            Command::DropHead(number) => self.log()?.drop_head(*number)?,
            Command::Retire(number) => {
                let retired = self.log()?.retire(*number)?;
                writeln!(output, "retired: {retired}")?;
            }
            Command::Unlink(number) => self.log()?.remover().remove(*number)?,
            Command::Segments => {
                for SegmentInfo { number, end, .. } in self.log()?.segments() {
                    writeln!(output, "{number} end {end:?}")?;
                }
            }
            Command::Fill => {
                let filled = self.log()?.filler().fill(&StopSignal::default())?;
                writeln!(output, "filled: {filled}")?;
            }
            Command::Read(number) => {
                let location = *self.locations.get(number).ok_or("no such record")?;
                let reader = self.reader.as_ref().ok_or("the log is not open")?;
                let record = reader.read(location)?;
                let (key, payload) = (&record.key[..], &record.payload[..]);
                let record = Record {
                    kind: record.kind,
                    number: record.number,
                    key,
                    payload,
                };
                writeln!(output, "{}", shown(&record))?;
            }
            Command::Crash { survive } => output = self.crash(survive)?,
            Command::Unsynced => {
                for (at, what) in self.fs.unsynced().iter().enumerate() {
                    writeln!(output, "{at} {what:?}")?;
                }
            }
            Command::Flip { file, offset } => {
                let flipped = self.fs.flip_bit(&dir().join(file), *offset, 0);
                writeln!(output, "flipped: {flipped}")?;
            }
            Command::Remove { file } => self.fs.remove(&dir().join(file))?,
            Command::Fail {
                operation,
                fault,
                after,
            } => {
                let (operation, fault) = parse_fault(operation, fault)?;
                self.fs.fail(operation, after.unwrap_or(0), fault);
            }
            Command::Capacity(bytes) => self.fs.set_capacity(Some(*bytes)),
            Command::Dump => output = self.dump()?,
        }
        Ok(output)
    }

    fn end_command(
        &mut self,
        command: &Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut output = String::new();
        for line in self.fs.take_trace() {
            writeln!(output, "disk: {line}")?;
        }
        let moves = matches!(
            command,
            Command::Open { .. }
                | Command::Write
                | Command::WriteReserved
                | Command::Sync
                | Command::Idle
        );
        if let Some(log) = self.log.as_ref().filter(|_| moves) {
            writeln!(output, "end {} synced {}", log.end(), log.synced())?;
        }
        Ok(output)
    }
}

#[test]
fn scripts_come_out_as_recorded() {
    let scripts: PathBuf = [env!("CARGO_MANIFEST_DIR"), "src/disk/testscripts"]
        .iter()
        .collect();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(scripts)
        .expect("the scripts are there")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        goldenscript::run(&mut Runner::new(), &path).expect("the script runs");
    }
}
