//! Makes `cluster.json` anew where it is damaged, or missing from a cluster that has served.
//!
//! All that it says of a cluster stands in the directory a second time: each process has its
//! settings in `config/NAME.toml`, with its addresses, and its data in `NAME/`, whose lock file
//! holds the last pid. So damage is told and mended, and only what cannot be known is an error: to
//! go on with fewer processes than there are would be the loss of messages.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::manifest::{Damaged, FILE, Manifest, Process, Role, State};
use super::setup;
use crate::config::Sources;
use crate::config::leader::LeaderConfig;
use crate::config::member::MemberConfig;
use crate::disk::lock::LOCK_NAME;

/// What is known of the processes of a directory: by its `cluster.json`, or by what else is there,
/// with a line that tells so. `None` is a directory that is not set up yet.
pub fn read(dir: &Path) -> Result<(Option<Manifest>, Option<String>)> {
    let problem = match Manifest::read(dir) {
        Ok(Some(manifest)) if manifest.of_role(Role::Leader).next().is_some() => {
            return Ok((Some(manifest), None));
        }
        Ok(Some(_)) => format!("{} names no leader", dir.join(FILE).display()),
        // A set-up that was interrupted before the file was written is continued.
        Ok(None) if !setup::is_bootstrapped(dir) => return Ok((None, None)),
        Ok(None) => format!("{} is missing", dir.join(FILE).display()),
        Err(error) => match error.downcast_ref::<Damaged>() {
            Some(damaged) => damaged.to_string(),
            None => return Err(error),
        },
    };
    let manifest = remake(dir).with_context(|| {
        format!(
            "{problem}, and cannot be made anew from the settings in {}; restore either of them \
             from a copy, or give another --data-dir for a new cluster",
            dir.join("config").display()
        )
    })?;
    let count = |role| manifest.of_role(role).count();
    let line = format!(
        "{problem}; it is made anew from {}, leaders: {}, members: {}",
        dir.join("config").display(),
        count(Role::Leader),
        count(Role::Member)
    );
    Ok((Some(manifest), Some(line)))
}

/// The rows of the processes whose settings are there.
fn remake(dir: &Path) -> Result<Manifest> {
    let config = dir.join("config");
    let mut highest = [(Role::Leader, 0), (Role::Member, 0)];
    let entries =
        fs::read_dir(&config).with_context(|| format!("cannot read {}", config.display()))?;
    for entry in entries {
        let name = entry.context("cannot read a name")?.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".toml")) else {
            continue;
        };
        for (role, highest) in &mut highest {
            let number = name
                .strip_prefix(role.as_str())
                .and_then(|n| n.strip_prefix('-'));
            let number = number.and_then(|number| number.parse::<u16>().ok());
            *highest = number.unwrap_or(0).max(*highest);
        }
    }
    let mut processes = Vec::new();
    for (role, highest) in highest {
        if highest == 0 {
            bail!("there is no {}-1.toml", role.as_str());
        }
        for number in 1..=highest {
            processes.push(row(dir, role, &format!("{}-{number}", role.as_str()))?);
        }
    }
    Ok(Manifest { processes })
}

fn row(dir: &Path, role: Role, name: &str) -> Result<Process> {
    let sources = Sources {
        file: Some(setup::config_path(dir, name)),
        ..Sources::default()
    };
    let text = |address: SocketAddr| address.to_string();
    let (rpc, hatokuse, http) = match role {
        Role::Leader => {
            let config = LeaderConfig::load(&sources)?.config;
            let hatokuse = Some(text(config.hatokuse_bind));
            (config.rpc_bind, hatokuse, config.http_bind.map(text))
        }
        Role::Member => (MemberConfig::load(&sources)?.config.rpc_bind, None, None),
    };
    let data_dir = dir.join(name);
    // Only for a process that is left over: it is not signalled unless it runs in this directory.
    let pid = fs::read_to_string(data_dir.join(LOCK_NAME)).unwrap_or_default();
    Ok(Process {
        name: name.to_owned(),
        role,
        pid: pid.trim().parse().unwrap_or(0),
        state: State::Stopped,
        data_dir,
        rpc: text(rpc),
        hatokuse,
        http,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_known_is_an_error_that_names_the_file_and_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path()).expect("readable"), (None, None));
        fs::write(dir.path().join(FILE), "").expect("written");
        let text = || format!("{:#}", read(dir.path()).expect_err("refused"));
        for part in [
            "cluster.json is damaged: EOF",
            "restore either",
            "/config: No such file",
        ] {
            assert!(text().contains(part), "{part}: {}", text());
        }
        fs::create_dir(dir.path().join("config")).expect("made");
        assert!(text().ends_with("there is no leader-1.toml"), "{}", text());
        for name in ["leader-1", "member-2", "member-x", "member-0"] {
            fs::write(setup::config_path(dir.path(), name), "").expect("written");
        }
        assert!(
            text().contains("member-1.toml: cannot be read"),
            "{}",
            text()
        );
        let settings = "rpc_bind = \"127.0.0.1:7007\"";
        fs::write(setup::config_path(dir.path(), "member-1"), settings).expect("written");
        fs::create_dir(dir.path().join("member-2")).expect("made");
        fs::write(dir.path().join("member-2/LOCK"), "77\n").expect("written");
        let (manifest, line) = read(dir.path()).expect("made anew");
        let rows = manifest.expect("rows").processes;
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (&*row.name, row.pid, &*row.rpc))
            .collect();
        let expected = [
            ("leader-1", 0, "127.0.0.1:5555"),
            ("member-1", 0, "127.0.0.1:7007"),
            ("member-2", 77, "127.0.0.1:5556"),
        ];
        assert_eq!(rows, expected);
        assert!(line.expect("told").ends_with("leaders: 1, members: 2"));
    }
}
