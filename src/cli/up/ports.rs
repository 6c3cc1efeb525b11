//! Which ports the processes of a local cluster get, and whether they are free.
//!
//! | process | RPC | HaToKuSe | HTTP |
//! |---|---|---|---|
//! | leader k (from 1) | 5555 + 100·(k − 1) | 6666 + 100·(k − 1) | 8080 + 100·(k − 1) |
//! | member k (from 1) | 5556 + (k − 1) | | |
//!
//! `--port-offset` is added to all of them. All are on 127.0.0.1.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::super::exit::ToolError;
use super::manifest::Role;

const LEADER_RPC: u32 = 5555;
const LEADER_HATOKUSE: u32 = 6666;
const LEADER_HTTP: u32 = 8080;
const LEADER_STEP: u32 = 100;
const MEMBER_RPC: u32 = 5556;

/// The addresses of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For other nodes.
    pub rpc: SocketAddr,
    /// For clients; leaders only.
    pub hatokuse: Option<SocketAddr>,
    /// For clients over HTTP; leaders only.
    pub http: Option<SocketAddr>,
}

/// The addresses of the `number`-th process of a role, from 1.
pub fn addresses(role: Role, number: u16, offset: u16) -> Result<Addresses, ToolError> {
    let index = u32::from(number) - 1;
    let place = |port: u32| -> Result<SocketAddr, ToolError> {
        let port = u16::try_from(port + u32::from(offset));
        let port = port.map_err(|_| {
            ToolError::usage(format!("--port-offset {offset}: ports would exceed 65535"))
        })?;
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    };
    Ok(match role {
        Role::Leader => Addresses {
            rpc: place(LEADER_RPC + LEADER_STEP * index)?,
            hatokuse: Some(place(LEADER_HATOKUSE + LEADER_STEP * index)?),
            http: Some(place(LEADER_HTTP + LEADER_STEP * index)?),
        },
        Role::Member => Addresses {
            rpc: place(MEMBER_RPC + index)?,
            hatokuse: None,
            http: None,
        },
    })
}

/// Checks that every port is free, before anything is started. The processes bind them a moment
/// later; who loses that race says so in its own log.
pub fn check_free<'a>(wanted: impl Iterator<Item = (&'a str, Addresses)>) -> Result<(), ToolError> {
    let mut taken = Vec::new();
    for (name, addresses) in wanted {
        let purposes = [
            ("RPC", Some(addresses.rpc)),
            ("HaToKuSe", addresses.hatokuse),
            ("HTTP", addresses.http),
        ];
        for (purpose, address) in purposes {
            let Some(address) = address else { continue };
            if let Err(error) = TcpListener::bind(address) {
                let why = match error.kind() {
                    ErrorKind::AddrInUse => "is taken".to_owned(),
                    _ => format!("cannot be used ({error})"),
                };
                taken.push(format!(
                    "port {} {why}, {name} wants it for {purpose}",
                    address.port()
                ));
            }
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    Err(ToolError::failed(format!(
        "{}; --port-offset N moves all ports",
        taken.join("; ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_the_documented_ones() {
        let leader = addresses(Role::Leader, 2, 10).expect("valid");
        assert_eq!(leader.rpc.to_string(), "127.0.0.1:5665");
        assert_eq!(
            leader.hatokuse.expect("a leader").to_string(),
            "127.0.0.1:6776"
        );
        assert_eq!(leader.http.expect("a leader").to_string(), "127.0.0.1:8190");
        let member = addresses(Role::Member, 3, 0).expect("valid");
        assert_eq!((member.rpc.port(), member.hatokuse), (5558, None));
        assert!(addresses(Role::Leader, 1, 60_000).is_err());
    }

    #[test]
    fn a_taken_port_is_named_with_who_wants_it() {
        let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
        let rpc = holder.local_addr().expect("bound");
        let wanted = Addresses {
            rpc,
            hatokuse: None,
            http: None,
        };
        let error = check_free([("member-1", wanted)].into_iter()).expect_err("taken");
        let expected = format!("port {} is taken, member-1 wants it for RPC", rpc.port());
        assert!(error.text.starts_with(&expected), "{error}");
        drop(holder);
        assert!(check_free([("member-1", wanted)].into_iter()).is_ok());
    }
}
