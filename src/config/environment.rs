//! Environment variables that look like settings and are none: what is said of them.

use super::{Setting, leader, member};

/// What should be said about the environment, for the settings of `table`.
pub(super) fn warnings(table: &[Setting], environment: &[(String, String)]) -> Vec<String> {
    let unknown = unknown_variables(environment);
    let links = service_links(table, environment);
    unknown.into_iter().chain(links).collect()
}

/// Whether a value is the address of a Service, as Kubernetes gives it to containers. No setting
/// of the original accepts such a text.
pub(super) fn is_service_link(value: &str) -> bool {
    let schemes = ["tcp://", "udp://", "sctp://"];
    schemes.iter().any(|scheme| value.starts_with(scheme))
}

/// One line for the original's variables that are ignored since Kubernetes gave them.
fn service_links(table: &[Setting], environment: &[(String, String)]) -> Option<String> {
    let originals = table.iter().flat_map(|setting| setting.originals);
    let names: Vec<&str> = originals.map(|(name, _)| *name).collect();
    let links = environment
        .iter()
        .filter(|(name, value)| names.contains(&name.as_str()) && is_service_link(value));
    let mut found: Vec<&str> = links.map(|(name, _)| name.as_str()).collect();
    found.sort_unstable();
    let verb = match found.len() {
        0 => return None,
        1 => "is",
        _ => "are",
    };
    Some(format!(
        "environment: {} {verb} ignored: a value tcp://… is the address of a Kubernetes Service of \
         that name; enableServiceLinks: false in the pod keeps it out",
        found.join(", ")
    ))
}

/// One line for the variables that look like settings and are none, of neither role.
fn unknown_variables(environment: &[(String, String)]) -> Option<String> {
    let known: Vec<String> = leader::SETTINGS
        .iter()
        .chain(member::SETTINGS)
        .map(Setting::environment_name)
        .collect();
    let names = environment.iter().map(|(name, _)| name.as_str());
    let ours = names.filter(|name| name.starts_with("TOLEREX_"));
    let unknown: Vec<&str> = ours
        .filter(|name| known.iter().all(|known| known != name))
        .collect();
    let predicate = match unknown.len() {
        0 => return None,
        1 => "is no setting, it has no effect",
        _ => "are no settings, they have no effect",
    };
    Some(format!("environment: {} {predicate}", unknown.join(", ")))
}
