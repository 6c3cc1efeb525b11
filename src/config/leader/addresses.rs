//! Checks of a leader's addresses before it starts. Pure.

use crate::config::Values;

/// Other leaders and clients that are told `0.0.0.0` would look for this leader at their own.
pub(super) fn check(values: &mut Values) {
    use crate::config::Value::{Bind, None as Nothing, Switch};
    let joins = matches!(values.find("join"), Some(Switch(true)));
    for (bind, advertise) in [
        ("hatokuse_bind", "hatokuse_advertise"),
        ("http_bind", "http_advertise"),
        ("rpc_bind", "rpc_advertise"),
    ] {
        let Some(Bind(address)) = values.find(bind) else {
            continue;
        };
        let is_told = !matches!(values.find(advertise), Some(Nothing));
        if !address.ip().is_unspecified() || is_told {
            continue;
        }
        let what = format!("is {address}, which is no address for others to connect to");
        if joins {
            let what = format!("{what}; accepted: with {advertise} = \"HOST:PORT\"");
            values.problem(bind, what);
        } else {
            let warning = format!("{bind} {what}; a group of several leaders needs {advertise}");
            values.warnings.push(warning);
        }
    }
}
