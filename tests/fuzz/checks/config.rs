//! The settings of leader and member, and `tolerance.conf`.

use std::fs;
use std::path::{Path, PathBuf};

use tolerex::config::leader::{self, LeaderConfig};
use tolerex::config::member::{self, MemberConfig};
use tolerex::config::{ConfigError, Setting, Sources, tolerance};

/// Any text as a file is a configuration, or is refused by problems that each name the file and a
/// key (or say why it is no TOML); the same lines as flags and as environment name those.
pub fn check(data: &[u8]) {
    // Settings are read from a file, as they are by the processes. One for each thread.
    let thread = std::thread::current();
    let name = format!("tolerex-{}-{:?}.toml", std::process::id(), thread.id());
    let path = std::env::temp_dir().join(name);
    fs::write(&path, data).expect("a file in the directory for temporary ones");
    let loaded = load(&Sources {
        file: Some(path.clone()),
        ..Sources::default()
    });
    let tolerance = tolerance::read(&path);
    fs::remove_file(&path).expect("it is ours");
    let place = path.display().to_string();
    for (problems, settings) in loaded {
        let is_toml = str::from_utf8(data).is_ok_and(|text| text.parse::<toml::Table>().is_ok());
        for problem in &problems {
            // A default may be what a value of the file does not go with.
            let is_placed = problem.starts_with(&place) || problem.starts_with("default of ");
            assert!(is_placed || !is_toml, "{problem}");
            let is_named = settings
                .iter()
                .any(|setting| problem.contains(setting.name));
            assert!(is_named || !is_toml, "{problem}");
        }
        assert!(is_toml || !problems.is_empty(), "this is not TOML");
    }
    match tolerance {
        Ok(tolerance) => assert_eq!(tolerance_of(&path, tolerance), Ok(tolerance)),
        Err(problem) => assert!(problem.starts_with(&place), "{problem}"),
    }

    let lines = String::from_utf8_lossy(data);
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    let pairs = pairs.map(|(name, value)| (name.trim(), value.trim()));
    let flags = pairs.map(|(name, value)| (name.replace(['.', '_'], "-"), value.to_owned()));
    let flags: Vec<(String, String)> = flags.collect();
    let environment = flags.iter().map(|(name, value)| {
        let name = name.replace('-', "_").to_ascii_uppercase();
        (format!("TOLEREX_{name}"), value.clone())
    });
    let environment = environment.collect();
    for sources in [
        Sources {
            environment,
            ..Sources::default()
        },
        Sources {
            flags,
            ..Sources::default()
        },
    ] {
        for (problems, _) in load(&sources) {
            for problem in problems {
                let places = ["command line: --", "environment: ", "default of "];
                assert!(
                    places.iter().any(|place| problem.starts_with(place)),
                    "{problem}"
                );
            }
        }
    }
}

/// What is wrong, and the settings there are: of a leader and of a member.
fn load(sources: &Sources) -> [(Vec<String>, &'static [Setting]); 2] {
    let problems = |error: ConfigError| {
        assert!(!error.problems.is_empty(), "refused for no reason");
        assert!(error.to_string().contains(&error.problems[0].to_string()));
        error.problems.iter().map(ToString::to_string).collect()
    };
    let of_leader = LeaderConfig::load(sources)
        .err()
        .map_or(Vec::new(), problems);
    let of_member = MemberConfig::load(sources)
        .err()
        .map_or(Vec::new(), problems);
    [(of_leader, leader::SETTINGS), (of_member, member::SETTINGS)]
}

/// The tolerance that a file says which we write.
fn tolerance_of(path: &Path, tolerance: u8) -> Result<u8, String> {
    let path: PathBuf = path.with_extension("conf");
    fs::write(&path, tolerance::render(tolerance)).expect("a file");
    let read = tolerance::read(&path);
    fs::remove_file(&path).expect("it is ours");
    read
}
