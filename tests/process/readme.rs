//! Do the clients that README shows do what it says of them?
//!
//! Each stands between `<!-- python NAME -->` and `<!-- end -->`. It runs by itself, without any
//! package but Python's own, and writes and reads while the active leader is killed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tolerex::clock::sleep;

use crate::client::kill_the_active;
use crate::errors;
use crate::support::cluster::Cluster;

/// The most lines of such a client.
const LINES_MAX: usize = 40;

/// Writes for so many seconds; each write that takes effect twice, or not at all, is seen.
const DRIVER: &str = r#"
import sys, time
client, keep, number, longest = Tolerex(*sys.argv[2:]), {}, 0, 0
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    number, begin = number + 1, time.monotonic()
    key, value = f"p{number}", b"\r\n%d\xff" % number
    client.set(key, value)
    assert client.get(key) == value, key
    if number % 3:
        keep[key] = value
    else:
        assert client.delete(key), f"{key} was gone before"
        assert not client.delete(key), f"{key} is still there"
        assert client.get(key) is None, key
    longest = max(longest, time.monotonic() - begin)
for key, value in keep.items():
    assert client.get(key) == value, key
try:
    client.set("a key", b"x")
    assert False, "a bad key was taken"
except ValueError:
    pass
print(number, "rounds, the longest", round(longest, 1), "s")
"#;

/// The client of this name.
fn client(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).expect("README.md");
    let (_, rest) = text
        .split_once(&format!("<!-- python {name} -->"))
        .expect("the mark");
    let (block, _) = rest.split_once("<!-- end -->").expect("the end mark");
    let code = block.trim().strip_prefix("```python\n");
    let code = code.and_then(|code| code.strip_suffix("```"));
    code.expect("a block of Python").to_owned()
}

fn outlives_leaders(name: &str, addresses: &[String], cluster: &Cluster) {
    let code = client(name);
    let lines = code.lines().count();
    assert!(lines <= LINES_MAX, "{name} has {lines} lines");
    let path = cluster.dir().join(format!("{name}.py"));
    fs::write(&path, code + DRIVER).expect("written");
    let mut command = Command::new("python3");
    // Isolated, and without the directory of packages.
    command.args(["-I", "-S"]).arg(&path).arg("6");
    command.args(addresses).stdin(Stdio::null());
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(child) = piped.spawn() else {
        println!("skipped: there is no python3");
        return;
    };
    for _ in 0..2 {
        sleep(Duration::from_secs(1));
        kill_the_active(cluster);
    }
    let output = child.wait_with_output().expect("our child");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name}: {said}{}", errors(&output));
    println!("{name}: {said}");
    let rounds = said
        .split(' ')
        .next()
        .and_then(|text| text.parse::<u64>().ok());
    assert!(rounds.is_some_and(|rounds| rounds > 20), "{said}");
}

#[test]
fn the_python_client_by_hatokuse_outlives_each_leader() {
    let cluster = Cluster::start(&["--leaders", "3"]);
    outlives_leaders("hatokuse", &cluster.leaders("hatokuse"), &cluster);
}

#[test]
fn the_python_client_by_http_outlives_each_leader() {
    let cluster = Cluster::start(&["--leaders", "3"]);
    outlives_leaders("http", &cluster.leaders("http"), &cluster);
}
