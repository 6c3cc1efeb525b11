//! Documentation derived from the tables of settings: the example files, and README's tables. Pure.
//!
//! `tests/docs.rs` compares them with the files and rewrites these with `UPDATE_GOLDENFILES=1`.

use super::{Kind, Part, Setting};

/// Columns of a comment in an example file.
const COMMENT_WIDTH: usize = 96;

/// A settings file with every setting at its default, explained.
pub fn example_file(role: &str, table: &[Setting]) -> String {
    let mut text = format!(
        "# Every setting of a {role}, at its default. Flags go before the environment, which goes\n\
         # before this file. A setting `name` is also the flag --name and the variable\n\
         # TOLEREX_NAME (in a table: --table-name, TOLEREX_TABLE_NAME). {{name}} in a path\n\
         # stands for the node's name.\n"
    );
    let mut section = "";
    for setting in table {
        let (table, key) = setting.name.split_once('.').unwrap_or(("", setting.name));
        if table != section {
            text += &format!("\n[{table}]\n");
            section = table;
        }
        let explained = format!(
            "{}. Accepted: {}.",
            capitalised(setting.meaning),
            setting.kind
        );
        text += &format!("\n{}{key} = {}\n", comment(&explained), toml_value(setting));
    }
    text
}

/// A Markdown table of settings.
pub fn markdown(table: &[Setting]) -> String {
    let mut text = String::from(
        "| setting | default | unit | meaning | environment |\n|---|---|---|---|---|\n",
    );
    for setting in table {
        let default = match setting.default {
            "" => String::new(),
            default => format!("`{default}`"),
        };
        let mut names = vec![format!("`{}`", setting.environment_name())];
        for (name, part) in setting.originals {
            names.push(match part {
                Part::Whole => format!("`{name}`"),
                Part::Host => format!("`{name}` (host)"),
                Part::Port => format!("`{name}` (port)"),
            });
        }
        let (name, unit, meaning) = (setting.name, setting.kind.unit(), setting.meaning);
        text += &format!(
            "| `{name}` | {default} | {unit} | {meaning} | {} |\n",
            names.join(", ")
        );
    }
    text
}

fn toml_value(setting: &Setting) -> String {
    match setting.kind {
        Kind::Switch | Kind::Count(..) => setting.default.to_owned(),
        Kind::Hosts if setting.default.is_empty() => "[]".to_owned(),
        Kind::Addresses | Kind::Hosts => {
            let quoted: Vec<String> = setting
                .default
                .split(',')
                .map(|part| format!("{part:?}"))
                .collect();
            format!("[{}]", quoted.join(", "))
        }
        Kind::Name
        | Kind::Text
        | Kind::Filled
        | Kind::Path
        | Kind::BaseDir
        | Kind::Bind
        | Kind::BindOrNone
        | Kind::Advertise
        | Kind::Size(..)
        | Kind::Time(..)
        | Kind::OneOf(_)
        | Kind::Cluster
        | Kind::Entry => format!("{:?}", setting.default),
    }
}

fn comment(text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::from("#");
    for word in text.split(' ') {
        if line.len() + 1 + word.len() > COMMENT_WIDTH {
            lines += &format!("{line}\n");
            line = String::from("#");
        }
        line += &format!(" {word}");
    }
    format!("{lines}{line}\n")
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}
