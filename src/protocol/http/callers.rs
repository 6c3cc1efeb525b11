//! Who may ask: under which names this node is served, and which web pages are foreign. Pure.
//!
//! A browser is not a caller of its own will. A page of somebody else can make it send requests
//! here, and a name of somebody else can be made to stand for this node's address (DNS rebinding),
//! whereupon the page may read the answers too. So:
//!
//! * Served are IP addresses, `localhost` and names below it, the names in the addresses that the
//!   leaders of this group advertise, and those of the setting `http_hosts`; any other host is
//!   answered 421. None of these can be made to stand for this node by others. Ports do not
//!   matter: a proxy may have its own.
//! * A request that says which page it comes from (`Origin`) is answered 403 unless that page is
//!   this host's, by the address in `Host`, or that of a leader of this group, by its HTTP address;
//!   so is one with `Sec-Fetch-Site: cross-site` that does not come from such a leader's page.
//!
//! Programs send neither field. `Sec-Fetch-Site: none` is a person's own doing (an address that was
//! typed); `same-site` without an Origin is a read whose answer the page does not see.

use core::net::{Ipv4Addr, Ipv6Addr};

use super::head::Head;
use super::node::Node;
use super::problem::{Kind, Problem};

/// So much of a host's name is told.
const HOST_CHARS_SHOWN: usize = 64;

/// The only domain whose names are this machine's wherever they are looked up (RFC 6761).
const LOCALHOST: &str = "localhost";

/// A host, in lower case and without the dot at its end, and its port, if it is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    host: String,
    port: Option<u16>,
}

impl Authority {
    /// Reads `host`, `host:port` or `[address]:port`; `None` if it is none of these.
    pub fn parse(text: &str) -> Option<Authority> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, rest)) => {
                address.parse::<Ipv6Addr>().ok()?;
                (text.get(..address.len() + 2)?, rest)
            }
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            Some(_) | None => return None,
        };
        let is_bad =
            |char: char| char.is_whitespace() || char.is_control() || ",@/?#\\".contains(char);
        if host.contains(is_bad) {
            return None;
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        Some(Authority { host, port })
    }

    fn is_address(&self) -> bool {
        let address = |text: &str| text.parse::<Ipv4Addr>().is_ok();
        self.host.starts_with('[') || address(&self.host)
    }

    /// Whether it is a name of this machine itself.
    fn is_localhost(&self) -> bool {
        let below = self.host.strip_suffix(LOCALHOST);
        below.is_some_and(|below| below.is_empty() || below.ends_with('.'))
    }

    /// Whether it stands for this machine, by name or by address.
    fn is_loopback(&self) -> bool {
        let address = self.host.parse::<Ipv4Addr>();
        let is_loopback = address.is_ok_and(|address| address.is_loopback());
        self.is_localhost() || is_loopback || self.host == "[::1]"
    }

    fn is_same(&self, other: &Authority, port_default: u16) -> bool {
        let port = |of: &Authority| of.port.unwrap_or(port_default);
        let is_same_host = self.host == other.host || (self.is_loopback() && other.is_loopback());
        is_same_host && port(self) == port(other)
    }
}

/// Refuses a request under a name that is not served, or of a foreign page.
pub fn check(head: &Head, node: &dyn Node) -> Result<(), Problem> {
    if let Some(host) = &head.host
        && !is_served(host, node)
    {
        let name: String = host.host.chars().take(HOST_CHARS_SHOWN).collect();
        let detail = format!(
            "the host {name:?} is not served; accepted: IP addresses, localhost, names that the \
             leaders advertise, and those of the setting http_hosts"
        );
        return Err(Problem::with(Kind::MisdirectedRequest, detail));
    }
    let fields = &head.fields;
    let is_cross_site = fields
        .sec_fetch_site
        .as_deref()
        .is_some_and(|site| site.eq_ignore_ascii_case("cross-site"));
    let detail = match fields.origin.as_deref() {
        None if is_cross_site => "Sec-Fetch-Site says cross-site".to_owned(),
        None => return Ok(()),
        Some(text) => {
            let origin = Origin::parse(text);
            let is_of_group = || {
                origin
                    .as_ref()
                    .is_some_and(|origin| origin.is_of_group(node))
            };
            let is_own = || match (&origin, &head.host) {
                (Some(origin), Some(host)) => origin.is_same(host),
                _ => false,
            };
            if (!is_cross_site && is_own()) || is_of_group() {
                return Ok(());
            }
            let text: String = text.chars().take(HOST_CHARS_SHOWN).collect();
            format!("the Origin {text:?} is foreign")
        }
    };
    let accepted = "accepted: requests of no page, of this host's pages and of those of the \
                    leaders of this group";
    Err(Problem::with(
        Kind::ForeignPage,
        format!("{detail}; {accepted}"),
    ))
}

fn is_served(host: &Authority, node: &dyn Node) -> bool {
    let is_known = || {
        let known = node.hosts().into_iter();
        let mut known = known.filter_map(|text| Authority::parse(&text));
        known.any(|known| known.host == host.host)
    };
    host.is_address() || host.is_localhost() || (!host.host.is_empty() && is_known())
}

/// Which page a request comes from.
struct Origin {
    authority: Authority,
    port_default: u16,
}

impl Origin {
    /// `None` for `null` and for schemes in which nothing of ours is served.
    fn parse(text: &str) -> Option<Origin> {
        let (scheme, authority) = text.split_once("://")?;
        let is = |name: &str| scheme.eq_ignore_ascii_case(name);
        Some(Origin {
            authority: Authority::parse(authority)?,
            port_default: match () {
                () if is("http") => 80,
                () if is("https") => 443,
                () => return None,
            },
        })
    }

    /// Whether it is the page of a host. Behind a proxy with TLS that host is `https` too.
    fn is_same(&self, host: &Authority) -> bool {
        self.authority.is_same(host, self.port_default)
    }

    fn is_of_group(&self, node: &dyn Node) -> bool {
        let mut addresses = node.group_http().into_iter();
        addresses.any(|address| {
            let address = Authority::parse(&address);
            address.is_some_and(|address| self.is_same(&address))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(text: &str) -> Authority {
        Authority::parse(text).expect(text)
    }

    #[test]
    fn addresses_and_names_of_this_machine_are_told_from_other_names() {
        for text in [
            "127.0.0.1",
            "10.0.0.1:8080",
            "[::1]",
            "[2001:db8::1]:8080",
            "localhost",
            "LOCALHOST.:1",
            "a.localhost",
        ] {
            let host = authority(text);
            assert!(host.is_address() || host.is_localhost(), "{text}");
        }
        for text in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "1.2.3",
            "2130706433",
            "0x7f.1",
            "",
        ] {
            let host = authority(text);
            assert!(!host.is_address() && !host.is_localhost(), "{text}");
        }
        for text in [
            "h:x", "h:65536", "h:1:2", "::1", "[::1", "[h]", "[::1]x", "a b", "u@h", "h/", "h:+1",
        ] {
            assert_eq!(Authority::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_default_port_of_an_origin_is_its_schemes() {
        for (origin, host) in [
            ("http://h:8080", "H:8080"),
            ("http://h", "h:80"),
            ("http://h:80", "h"),
            ("https://h", "h"),
            ("https://h:443", "h"),
            ("http://localhost:1", "127.0.0.1:1"),
            ("http://[::1]:1", "localhost:1"),
        ] {
            let is_same = Origin::parse(origin)
                .expect(origin)
                .is_same(&authority(host));
            assert!(is_same, "{origin} {host}");
        }
        for (origin, host) in [
            ("http://h:8080", "h"),
            ("http://h", "h:443"),
            ("http://h:1", "g:1"),
            ("http://127.0.0.1:1", "10.0.0.1:1"),
        ] {
            let is_same = Origin::parse(origin)
                .expect(origin)
                .is_same(&authority(host));
            assert!(!is_same, "{origin} {host}");
        }
        for origin in ["null", "", "h:80", "file://", "ftp://h", "http://h/x"] {
            let origin = Origin::parse(origin).filter(|origin| !origin.authority.host.is_empty());
            assert!(origin.is_none());
        }
    }
}
