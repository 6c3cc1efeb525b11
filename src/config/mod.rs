//! Settings: flags over environment over file over default, every problem reported at once.
//!
//! Each process has one table of [`Setting`]s ([`leader::SETTINGS`], [`member::SETTINGS`]). The
//! flags, the environment names, the check of the example files and README's table all come from
//! it, so a setting is added in one place. A setting `name` (in a TOML table `table.name`) is the
//! flag `--name` (`--table-name`) and the environment variable `TOLEREX_NAME`
//! (`TOLEREX_TABLE_NAME`). Names of the original are read too, where they are not given by a newer
//! name, unless Kubernetes gave the value: it sets `LEADER_TCP_PORT=tcp://…` in every container
//! where there is a Service `leader-tcp`.
//!
//! Values are text until their [`Kind`] has checked them, wherever they came from. An unknown key
//! in a file is an error; an unknown `TOLEREX_…` variable is a warning, since `tolerex up` hands
//! its environment to processes of both roles.
//!
//! Sources are read when [`leader::LeaderConfig::load`] is called, and again on SIGHUP.

mod common;
pub mod docs;
mod environment;
pub mod kinds;
pub mod leader;
pub mod member;
pub mod tolerance;
pub mod units;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;
use toml::Value as TomlValue;

pub use kinds::{Kind, Value};

use crate::ids::{ClusterId, LogPosition};

/// One setting of a process.
#[derive(Debug)]
pub struct Setting {
    /// Its name in the file, `table.name` inside a table.
    pub name: &'static str,
    /// What it accepts.
    pub kind: Kind,
    /// Its value when nothing else is given; `{name}` stands for the node's name.
    pub default: &'static str,
    /// Other environment names for it, the original's, and what part of it they give.
    pub originals: &'static [(&'static str, Part)],
    /// Short flags such as `port`, and what part of it they give.
    pub short_flags: &'static [(&'static str, Part)],
    /// What it means, one sentence without a full stop.
    pub meaning: &'static str,
}

/// What part of a setting a name gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The host of an address.
    Host,
    /// The port of an address.
    Port,
}

impl Setting {
    /// Its environment variable.
    pub fn environment_name(&self) -> String {
        format!(
            "TOLEREX_{}",
            self.name.replace('.', "_").to_ascii_uppercase()
        )
    }

    /// Its command line flag, without the leading hyphens.
    pub fn flag_name(&self) -> String {
        self.name.replace(['.', '_'], "-")
    }
}

/// Where the settings of a process come from; kept, so that they can be read again.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Flags as given: name without hyphens (a setting's or a short one), value.
    pub flags: Vec<(String, String)>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// The file, if one was named.
    pub file: Option<PathBuf>,
}

/// One thing that is wrong: where, what, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything that is wrong with the settings given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad configuration:{}", Lines(.problems))]
pub struct ConfigError {
    /// In the order of the table, file errors first; never empty.
    pub problems: Vec<Problem>,
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// A configuration and what should be said about how it was given.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The checked settings.
    pub config: T,
    /// To be logged as warnings.
    pub warnings: Vec<String>,
}

/// Where a value came from, for error texts.
#[derive(Clone, Debug)]
enum Origin {
    Default,
    File(PathBuf),
    Environment(String),
    Flag(String),
}

impl Origin {
    fn locate(&self, setting: &Setting) -> String {
        match self {
            Origin::Default => format!("default of {}", setting.name),
            Origin::File(path) => format!("{}: {}", path.display(), setting.name),
            Origin::Environment(name) => format!("environment: {name}"),
            Origin::Flag(name) => format!("command line: --{name}"),
        }
    }
}

/// The values of one table, by setting; every one of them was accepted by its kind.
struct Values {
    rows: Vec<(&'static Setting, Value, Origin)>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Values {
    /// Reads the values of `table` from the default up to the flags.
    fn resolve(table: &'static [Setting], sources: &Sources) -> Values {
        let mut problems = Vec::new();
        let file = match &sources.file {
            Some(path) => read_file(path, table, &mut problems),
            None => Vec::new(),
        };
        let mut rows = Vec::with_capacity(table.len());
        for setting in table {
            let (text, origin) = match text_of(setting, sources, &file) {
                Ok(found) => found,
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            };
            match setting.kind.read(&text) {
                Some(value) => rows.push((setting, value, origin)),
                None => problems.push(Problem(format!(
                    "{} is {text:?}; accepted: {}",
                    origin.locate(setting),
                    setting.kind
                ))),
            }
        }
        let mut values = Values {
            rows,
            problems,
            warnings: environment::warnings(table, &sources.environment),
        };
        values.place_paths();
        values
    }

    /// Puts the node's name into paths, and the base directory before relative ones.
    fn place_paths(&mut self) {
        let find = |name| self.rows.iter().find(|(setting, ..)| setting.name == name);
        let name = match find("name") {
            Some((_, Value::Text(name), _)) => name.clone(),
            _ => return, // Its own problem is already reported.
        };
        let base = match find("base_dir") {
            Some((_, Value::Path(base), _)) => base.clone(),
            _ => PathBuf::new(),
        };
        for (setting, value, _) in &mut self.rows {
            if let (Kind::Path, Value::Path(path)) = (setting.kind, value) {
                let named = path.to_string_lossy().replace("{name}", &name);
                *path = base.join(named);
            }
        }
    }

    /// Adds a problem that concerns several settings, located at `name`.
    fn problem(&mut self, name: &str, what: impl fmt::Display) {
        let row = self.rows.iter().find(|(setting, ..)| setting.name == name);
        let place = row.map_or(name.to_owned(), |(setting, _, origin)| {
            origin.locate(setting)
        });
        self.problems.push(Problem(format!("{place} {what}")));
    }

    /// The problems as an error, or the warnings to go with the configuration that `build` makes.
    /// `build` may ask for any value of the table.
    fn finish<T>(mut self, build: impl FnOnce(&Values) -> T) -> Result<Loaded<T>, ConfigError> {
        if !self.problems.is_empty() {
            return Err(ConfigError {
                problems: self.problems,
            });
        }
        let warnings = std::mem::take(&mut self.warnings);
        Ok(Loaded {
            config: build(&self),
            warnings,
        })
    }

    /// The value of a setting, while its problems are not yet known to be none.
    fn find(&self, name: &str) -> Option<&Value> {
        let row = self.rows.iter().find(|(setting, ..)| setting.name == name);
        row.map(|(_, value, _)| value)
    }

    fn value(&self, name: &str) -> &Value {
        self.find(name)
            .unwrap_or_else(|| panic!("no setting {name} in the table"))
    }

    fn text(&self, name: &str) -> String {
        match self.value(name) {
            Value::Text(text) => text.clone(),
            other => panic!("{name} is no text: {other:?}"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        match self.value(name) {
            Value::Path(path) => path.clone(),
            other => panic!("{name} is no path: {other:?}"),
        }
    }

    fn bind(&self, name: &str) -> SocketAddr {
        self.bind_or_none(name)
            .unwrap_or_else(|| panic!("{name} is optional"))
    }

    fn bind_or_none(&self, name: &str) -> Option<SocketAddr> {
        match self.value(name) {
            Value::Bind(address) => Some(*address),
            Value::None => None,
            other => panic!("{name} is no address: {other:?}"),
        }
    }

    fn addresses(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Value::Addresses(addresses) => addresses.clone(),
            Value::None => Vec::new(),
            other => panic!("{name} is no list of addresses: {other:?}"),
        }
    }

    fn switch(&self, name: &str) -> bool {
        match self.value(name) {
            Value::Switch(on) => *on,
            other => panic!("{name} is no switch: {other:?}"),
        }
    }

    fn number(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Number(number) => *number,
            other => panic!("{name} is no number: {other:?}"),
        }
    }

    fn count(&self, name: &str) -> usize {
        usize::try_from(self.number(name)).expect("bounds of counts and sizes fit a usize")
    }

    fn time(&self, name: &str) -> Duration {
        match self.value(name) {
            Value::Time(time) => *time,
            other => panic!("{name} is no time: {other:?}"),
        }
    }

    fn cluster(&self, name: &str) -> Option<ClusterId> {
        match self.value(name) {
            Value::Cluster(id) => Some(*id),
            Value::None => None,
            other => panic!("{name} is no cluster id: {other:?}"),
        }
    }

    fn entry(&self, name: &str) -> LogPosition {
        match self.value(name) {
            Value::Entry(position) => *position,
            Value::None => LogPosition::default(),
            other => panic!("{name} is no entry: {other:?}"),
        }
    }

    fn level(&self, name: &str) -> LevelFilter {
        self.text(name)
            .parse()
            .expect("the table lists the names of levels")
    }

    fn tls(&self) -> Tls {
        Tls {
            ca: self.path("tls.ca"),
            cert: self.path("tls.cert"),
            key: self.path("tls.key"),
        }
    }
}

/// The accepted log levels, as the `log` crate names them.
pub const LOG_LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// Where a process finds what it proves its identity with; PEM files, re-read on SIGHUP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificate of the authority that signed every certificate of the cluster.
    pub ca: PathBuf,
    /// This process's certificate: CN is its role, SAN its name.
    pub cert: PathBuf,
    /// The key of that certificate.
    pub key: PathBuf,
}

/// The keys of a file in dotted form with their values as text. Unknown keys, and values that have
/// no text form, are problems.
fn read_file(
    path: &Path,
    table: &[Setting],
    problems: &mut Vec<Problem>,
) -> Vec<(String, String, Origin)> {
    let mut problem = |what: String| problems.push(Problem(format!("{}: {what}", path.display())));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problem(format!("cannot be read: {error}"));
            return Vec::new();
        }
    };
    let root: toml::Table = match toml::from_str(&text) {
        Ok(root) => root,
        Err(error) => {
            problem(error.to_string().trim_end().replace('\n', "\n    "));
            return Vec::new();
        }
    };
    let mut flat = Vec::new();
    for (key, value) in root {
        match value {
            TomlValue::Table(inner) => {
                flat.extend(inner.into_iter().map(|(k, v)| (format!("{key}.{k}"), v)));
            }
            value => flat.push((key, value)),
        }
    }
    let (mut values, mut unknown) = (Vec::new(), Vec::new());
    for (key, value) in flat {
        let Some(setting) = table.iter().find(|setting| setting.name == key) else {
            unknown.push(key);
            continue;
        };
        match text_of_toml(&value) {
            Some(text) => values.push((key, text, Origin::File(path.to_owned()))),
            None => problem(format!("{key} is {value}; accepted: {}", setting.kind)),
        }
    }
    if !unknown.is_empty() {
        // What is accepted is long: it is said once.
        let names: Vec<&str> = table.iter().map(|setting| setting.name).collect();
        let noun = if unknown.len() == 1 { "key" } else { "keys" };
        let (unknown, names) = (unknown.join(", "), names.join(", "));
        problem(format!("unknown {noun} {unknown}; accepted: {names}"));
    }
    values
}

fn text_of_toml(value: &TomlValue) -> Option<String> {
    match value {
        TomlValue::String(text) => Some(text.clone()),
        TomlValue::Integer(number) => Some(number.to_string()),
        TomlValue::Boolean(on) => Some(on.to_string()),
        TomlValue::Array(items) => {
            let texts: Option<Vec<&str>> = items.iter().map(TomlValue::as_str).collect();
            Some(texts?.join(","))
        }
        TomlValue::Float(_) | TomlValue::Datetime(_) | TomlValue::Table(_) => None,
    }
}

/// The text of one setting and where it came from. A part of an address that is
/// wrong is a problem here, so that what was given is named and not the address made of it.
fn text_of(
    setting: &Setting,
    sources: &Sources,
    file: &[(String, String, Origin)],
) -> Result<(String, Origin), Problem> {
    let mut text = setting.default.to_owned();
    let mut origin = Origin::Default;
    if let Some((_, value, from)) = file.iter().find(|(key, ..)| key == setting.name) {
        (text, origin) = (value.clone(), from.clone());
    }
    let variable = |name: &str| {
        let found = sources.environment.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value)
    };
    for (name, part) in setting.originals {
        if let Some(value) = variable(name).filter(|value| !environment::is_service_link(value)) {
            origin = Origin::Environment((*name).to_owned());
            check_part(*part, value, &origin, setting)?;
            text = with_part(&text, *part, value);
        }
    }
    let name = setting.environment_name();
    if let Some(value) = variable(&name) {
        (text, origin) = (value.clone(), Origin::Environment(name));
    }
    for (flag, value) in &sources.flags {
        let short = setting.short_flags.iter().find(|(short, _)| short == flag);
        let part = if *flag == setting.flag_name() {
            Part::Whole
        } else if let Some((_, part)) = short {
            *part
        } else {
            continue;
        };
        origin = Origin::Flag(flag.clone());
        check_part(part, value, &origin, setting)?;
        text = with_part(&text, part, value);
    }
    Ok((text, origin))
}

fn check_part(part: Part, value: &str, origin: &Origin, setting: &Setting) -> Result<(), Problem> {
    let (is_good, accepted) = match part {
        Part::Whole => return Ok(()), // The setting's kind checks it.
        Part::Host => {
            let inner = value.strip_prefix('[').and_then(|v| v.strip_suffix(']'));
            let is_good = inner.unwrap_or(value).parse::<IpAddr>().is_ok();
            (is_good, "an IP address")
        }
        Part::Port => (value.parse::<u16>().is_ok(), "a port from 0 to 65535"),
    };
    if is_good {
        return Ok(());
    }
    let place = origin.locate(setting);
    Err(Problem(format!(
        "{place} is {value:?}; accepted: {accepted}"
    )))
}

/// An address with one part replaced. Where there was none, the host is loopback.
fn with_part(address: &str, part: Part, value: &str) -> String {
    let (host, port) = address.rsplit_once(':').unwrap_or(("127.0.0.1", "0"));
    match part {
        Part::Whole => value.to_owned(),
        Part::Host if value.contains(':') && !value.starts_with('[') => format!("[{value}]:{port}"),
        Part::Host => format!("{value}:{port}"),
        Part::Port => format!("{host}:{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::leader::{LeaderConfig, Strategy};
    use super::member::MemberConfig;
    use super::*;
    use std::ops::Deref;
    use tempfile::TempDir;

    /// Sources, and the directory their file is in.
    struct Given {
        sources: Sources,
        _dir: TempDir,
    }

    impl Deref for Given {
        type Target = Sources;

        fn deref(&self) -> &Sources {
            &self.sources
        }
    }

    fn sources(flags: &[(&str, &str)], environment: &[(&str, &str)], file: &str) -> Given {
        let own = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.toml");
        std::fs::write(&path, file).expect("written");
        Given {
            sources: Sources {
                flags: own(flags),
                environment: own(environment),
                file: Some(path),
            },
            _dir: dir,
        }
    }

    fn problems(sources: &Sources) -> String {
        LeaderConfig::load(sources)
            .map(|_| ())
            .expect_err("bad settings")
            .to_string()
    }

    #[test]
    fn flags_go_before_environment_before_file_before_default() {
        let file = "workers = 8\nstrategy = \"p2c\"\nread_timeout = \"5s\"\n[tls]\nca = \"x.crt\"";
        let environment = [("TOLEREX_WORKERS", "9"), ("TOLEREX_READ_TIMEOUT", "6s")];
        let config = LeaderConfig::load(&sources(&[("workers", "10")], &environment, file));
        let config = config.expect("valid").config;
        assert_eq!(
            (config.workers, config.read_timeout),
            (10, Duration::from_secs(6))
        );
        assert_eq!(
            (config.strategy, config.tls.ca),
            (Strategy::P2c, "x.crt".into())
        );
        assert_eq!(config.write_timeout, Duration::from_secs(2));
    }

    #[test]
    fn the_originals_names_are_read_and_newer_names_go_before_them() {
        let environment = [
            ("LEADER_TCP_PORT", "7000"),
            ("LEADER_TCP_BIND", "127.0.0.2"),
            ("LEADER_GRPC_PORT", "7001"),
            ("TOLEREX_RPC_BIND", "127.0.0.3:1"),
            ("BALANCER_STRATEGY", "p2c"),
            ("LEADER_METRICS_PORT", "9"),
            ("TOLEREX_BASE_DIR", "/base"),
            ("TOLERANCE_CONF", "t.conf"),
        ];
        let loaded = LeaderConfig::load(&sources(&[], &environment, "")).expect("valid");
        let config = loaded.config;
        assert_eq!(config.hatokuse_bind.to_string(), "127.0.0.2:7000");
        assert_eq!(config.rpc_bind.to_string(), "127.0.0.3:1");
        assert_eq!(
            config.metrics_bind.expect("given").to_string(),
            "127.0.0.1:9"
        );
        assert_eq!(config.strategy, Strategy::P2c);
        assert_eq!(config.tolerance_conf, Path::new("/base/t.conf"));
        assert_eq!(config.tls.cert, Path::new("/base/certs/leader-1.crt"));
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);

        let environment = [
            ("LEADER_ADDR", "a:1, b:2"),
            ("MEMBER_ADDR", "c:3"),
            ("MEMBER_GRPC_PORT", "4"),
        ];
        let flags = [("name", "member-7"), ("metrics", "9092")];
        let loaded = MemberConfig::load(&sources(&flags, &environment, "")).expect("valid");
        let config = loaded.config;
        assert_eq!(config.leaders, ["a:1", "b:2"]);
        assert_eq!(config.rpc_advertise.as_deref(), Some("c:3"));
        assert_eq!(config.rpc_bind.to_string(), "127.0.0.1:4");
        assert_eq!(config.metrics_bind.expect("given").port(), 9092);
        assert_eq!(config.data_dir, Path::new("data/member-7"));
    }

    #[test]
    fn every_problem_is_reported_at_once_with_place_and_what_is_accepted() {
        let file = "workers = 5000\ncolour = \"red\"\ncache_bytes = 1.5\n[tls]\nkay = \"x\"";
        let given = sources(
            &[("strategy", "best")],
            &[("TOLEREX_READ_HEDGE", "9s")],
            file,
        );
        let text = problems(&given);
        let path = given.file.as_ref().expect("a file").display();
        for expected in [
            format!("{path}: workers is \"5000\"; accepted: a number from 0 to 4096"),
            format!("{path}: unknown keys colour, tls.kay; accepted: name, base_dir"),
            format!("{path}: cache_bytes is 1.5; accepted: a size such as 64MiB"),
            "command line: --strategy is \"best\"; accepted: least_loaded, p2c".to_owned(),
            "environment: TOLEREX_READ_HEDGE is not below read_timeout (2s)".to_owned(),
        ] {
            assert!(text.contains(&expected), "{expected:?} is not in:\n{text}");
        }
    }

    #[test]
    fn a_wrong_part_of_an_address_is_named_as_it_was_given() {
        let text = problems(&sources(
            &[("metrics", "99999")],
            &[("LEADER_GRPC_PORT", "x"), ("LEADER_TCP_BIND", "zz")],
            "",
        ));
        for expected in [
            "command line: --metrics is \"99999\"; accepted: a port from 0 to 65535",
            "environment: LEADER_GRPC_PORT is \"x\"; accepted: a port from 0 to 65535",
            "environment: LEADER_TCP_BIND is \"zz\"; accepted: an IP address",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
    }

    #[test]
    fn a_file_that_is_no_toml_or_not_there_is_named() {
        assert!(problems(&sources(&[], &[], "workers = ")).contains("x.toml: TOML parse error"));
        let missing = Sources {
            file: Some("/nowhere.toml".into()),
            ..Sources::default()
        };
        assert!(problems(&missing).contains("/nowhere.toml: cannot be read: No such file"));
    }

    #[test]
    fn a_client_port_outside_loopback_needs_insecure() {
        let open = [("hatokuse-bind", "0.0.0.0:6666")];
        assert!(problems(&sources(&open, &[], "")).contains("or any with insecure = true"));
        let insecure = [open[0], ("insecure", "true")];
        assert!(LeaderConfig::load(&sources(&insecure, &[], "")).is_ok());
    }

    #[test]
    fn a_leader_of_several_that_binds_all_addresses_has_to_be_told_its_own() {
        let open = [
            ("hatokuse-bind", "0.0.0.0:6666"),
            ("rpc-bind", "[::]:5555"),
            ("insecure", "true"),
        ];
        let warnings = LeaderConfig::load(&sources(&open, &[], ""));
        let warnings = warnings.expect("valid").warnings;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(
            warnings[1].starts_with("rpc_bind is [::]:5555, which"),
            "{warnings:?}"
        );
        let join = [&open[..], &[("join", "true")]].concat();
        let problems = problems(&sources(&join, &[], ""));
        for advertise in ["hatokuse_advertise", "rpc_advertise"] {
            let accepted = format!("accepted: with {advertise} = \"HOST:PORT\"");
            assert!(problems.contains(&accepted), "{problems}");
        }
        let told = [
            ("hatokuse-advertise", "db1:6666"),
            ("rpc-advertise", "db1:5555"),
        ];
        let told = LeaderConfig::load(&sources(&[&join[..], &told].concat(), &[], ""));
        assert!(told.expect("valid").warnings.is_empty());
    }

    #[test]
    fn an_unknown_variable_is_a_warning_and_one_of_the_other_role_is_none() {
        let environment = [
            ("TOLEREX_ZONE", "a"),
            ("TOLEREX_WROKERS", "1"),
            ("PATH", "/"),
        ];
        let warnings = LeaderConfig::load(&sources(&[], &environment, ""))
            .expect("valid")
            .warnings;
        assert_eq!(
            warnings,
            ["environment: TOLEREX_WROKERS is no setting, it has no effect"]
        );
    }

    #[test]
    fn what_kubernetes_puts_into_the_environment_is_ignored_and_told_in_one_line() {
        for (table, role) in [(leader::SETTINGS, "leader"), (member::SETTINGS, "member")] {
            let originals = table.iter().flat_map(|setting| setting.originals);
            let links: Vec<(&str, &str)> = originals
                .map(|(name, _)| (*name, "tcp://10.0.0.9:6666"))
                .collect();
            let given = sources(&[], &links, "");
            let (warnings, is_default) = match role {
                "leader" => {
                    let loaded = LeaderConfig::load(&given).expect("ignored");
                    let plain = LeaderConfig::load(&Sources::default()).expect("defaults");
                    (loaded.warnings, loaded.config == plain.config)
                }
                _ => {
                    let loaded = MemberConfig::load(&given).expect("ignored");
                    let plain = MemberConfig::load(&Sources::default()).expect("defaults");
                    (loaded.warnings, loaded.config == plain.config)
                }
            };
            assert!(is_default, "{role}");
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            for (name, _) in links {
                assert!(warnings[0].contains(name), "{name}: {warnings:?}");
            }
        }
        // A name of the original beside them still counts, and one of ours is still checked.
        let given = sources(
            &[],
            &[
                ("LEADER_TCP_PORT", "tcp://10.0.0.9:6666"),
                ("LEADER_GRPC_PORT", "7001"),
            ],
            "",
        );
        let loaded = LeaderConfig::load(&given).expect("valid");
        assert_eq!(loaded.config.hatokuse_bind.port(), 6666);
        assert_eq!(loaded.config.rpc_bind.port(), 7001);
        assert!(loaded.warnings[0].starts_with("environment: LEADER_TCP_PORT is ignored: "));
        for given in [
            ("TOLEREX_HTTP_BIND", "tcp://10.0.0.9:80"),
            ("LEADER_TCP_PORT", "http://x"),
        ] {
            assert!(problems(&sources(&[], &[given], "")).contains(given.0));
        }
        let service = [
            ("TOLEREX_PORT", "tcp://10.0.0.9:1"),
            ("TOLEREX_SERVICE_HOST", "10.0.0.9"),
        ];
        let loaded = LeaderConfig::load(&sources(&[], &service, "")).expect("valid");
        let expected = "environment: TOLEREX_PORT, TOLEREX_SERVICE_HOST are no settings, they have \
                        no effect";
        assert_eq!(loaded.warnings, [expected]);
    }

    #[test]
    fn engines_and_write_modes_go_by_name_the_originals_variable_too() {
        use super::member::{EngineKind, WriteMode};
        for (name, mode) in [
            ("buffered", WriteMode::Buffered),
            ("unbuffered", WriteMode::Unbuffered),
            ("sync", WriteMode::Sync),
        ] {
            let environment = [("MEMBER_IO_MODE", name)];
            let config = MemberConfig::load(&sources(&[("engine", "files")], &environment, ""))
                .expect("valid")
                .config;
            assert_eq!((config.io, config.engine), (mode, EngineKind::Files));
            assert_eq!(mode.to_string(), name);
        }
        let flags = [("io", "fast"), ("engine", "tree")];
        let error = MemberConfig::load(&sources(&flags, &[], ""))
            .expect_err("refused")
            .to_string();
        let expected = "--io is \"fast\"; accepted: buffered, unbuffered, sync";
        assert!(error.contains(expected), "{error}");
        let expected = "--engine is \"tree\"; accepted: log, files";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn every_default_is_accepted_and_no_name_is_given_twice() {
        assert!(LeaderConfig::load(&Sources::default()).is_ok());
        assert!(MemberConfig::load(&Sources::default()).is_ok());
        for table in [leader::SETTINGS, member::SETTINGS] {
            let mut names: Vec<String> = Vec::new();
            for setting in table {
                names.push(setting.flag_name());
                names.push(setting.environment_name());
                names.extend(
                    setting
                        .short_flags
                        .iter()
                        .map(|(name, _)| (*name).to_owned()),
                );
                names.extend(setting.originals.iter().map(|(name, _)| (*name).to_owned()));
            }
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count);
        }
    }
}
