//! Does `proto/openapi.yaml` say what the code does?
//!
//! Paths, methods and types of problems are compared with the code's tables, both ways. What each
//! operation answers is compared with the transcripts of the protocol: what stands in one of them
//! is in the file, and what the file promises beside problems any request may get is in one of
//! them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tolerex::protocol::http::problem::Kind;
use tolerex::protocol::http::routes::RESOURCES;
use yaml_rust2::{Yaml, YamlLoader};

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).expect("a file of the repository")
}

fn api() -> Yaml {
    let documents = YamlLoader::load_from_str(&file("proto/openapi.yaml"));
    documents.expect("YAML").remove(0)
}

fn names(yaml: &Yaml) -> Vec<String> {
    let map = yaml.as_hash().expect("a map");
    let names = map.keys().map(|key| key.as_str().expect("text").to_owned());
    names.collect()
}

/// `GET /kv/{key}` and the like.
fn operations(api: &Yaml) -> BTreeSet<String> {
    let paths = &api["paths"];
    let mut operations = BTreeSet::new();
    for path in names(paths) {
        let methods = names(&paths[path.as_str()]);
        let methods = methods.into_iter().filter(|name| name != "parameters");
        operations.extend(methods.map(|method| format!("{} {path}", method.to_uppercase())));
    }
    operations
}

#[test]
fn the_file_has_the_resources_and_methods_of_the_code() {
    let of_code = RESOURCES.iter().flat_map(|(path, methods)| {
        let methods = methods.split(", ");
        methods.map(move |method| format!("{method} {path}"))
    });
    assert_eq!(operations(&api()), of_code.collect());
}

#[test]
fn the_file_has_the_problems_of_the_code_with_their_statuses() {
    let api = api();
    let listed = &api["components"]["schemas"]["Problem"]["properties"]["type"]["enum"];
    let listed = listed.as_vec().expect("a list").iter();
    let listed: Vec<&str> = listed.map(|one| one.as_str().expect("text")).collect();
    let of_code = Kind::ALL
        .iter()
        .map(|kind| format!("/problems/{}", kind.name()));
    assert_eq!(listed, of_code.collect::<Vec<_>>());
    // Its status stands behind each as a comment, for people.
    let text = file("proto/openapi.yaml");
    for kind in Kind::ALL {
        let line = format!("- /problems/{} # {}\n", kind.name(), kind.status());
        assert!(text.contains(&line), "{line}");
    }
}

/// Statuses that any request may get: what is `default` in the file.
const OF_ALL: &[&str] = &[
    "307", "400", "403", "408", "413", "414", "417", "421", "431", "500", "501", "503", "504",
    "505", "507",
];

/// Operations and statuses of the requests in the transcripts.
fn seen() -> BTreeSet<(String, String)> {
    let mut seen = BTreeSet::new();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/protocol/http/testscripts");
    for script in fs::read_dir(scripts).expect("scripts") {
        let text = fs::read_to_string(script.expect("a script").path()).expect("text");
        // In a block each `ask` has one response, in order.
        for block in text.split("\n\n") {
            let (commands, output) = block.split_once("\n---").unwrap_or((block, ""));
            let asked = commands
                .lines()
                .filter_map(|line| line.strip_prefix("ask \""));
            let asked: Vec<&str> = asked.collect();
            let statuses = output.match_indices("HTTP/1.1 ");
            let statuses: Vec<&str> = statuses.map(|(at, _)| &output[at + 9..at + 12]).collect();
            if asked.len() != statuses.len() {
                assert!(asked.is_empty() || commands.contains("raw "), "{block}");
                continue;
            }
            for (asked, status) in asked.into_iter().zip(statuses) {
                let target = asked.split('"').next().unwrap_or_default();
                let target = target.replace("http://h:8080", "");
                let (method, target) = target.split_once(' ').expect("a method and a path");
                let path = target.split('?').next().unwrap_or_default();
                let path = if path.starts_with("/kv/") {
                    "/kv/{key}"
                } else {
                    path
                };
                seen.insert((format!("{method} {path}"), status.to_owned()));
            }
        }
    }
    assert!(seen.len() > 30, "{seen:?}");
    seen
}

/// What the file promises of an operation beside `default`.
fn promised(api: &Yaml, operation: &str) -> BTreeSet<String> {
    let (method, path) = operation.split_once(' ').expect("a method and a path");
    let responses = &api["paths"][path][method.to_lowercase().as_str()]["responses"];
    let statuses = names(responses).into_iter();
    statuses.filter(|status| status != "default").collect()
}

#[test]
fn the_file_promises_what_the_transcripts_show() {
    let api = api();
    let operations = operations(&api);
    let seen = seen();
    for (operation, status) in &seen {
        if !operations.contains(operation) {
            assert_eq!(status, "405", "{operation}");
            continue;
        }
        let is_known = promised(&api, operation).contains(status);
        assert!(
            is_known || OF_ALL.contains(&&**status),
            "{operation} answers {status}"
        );
    }
    for operation in operations.iter().filter(|name| !name.starts_with("HEAD ")) {
        for status in promised(&api, operation) {
            let is_shown = seen.contains(&(operation.clone(), status.clone()));
            assert!(is_shown, "no transcript shows {status} of {operation}");
        }
    }
}
