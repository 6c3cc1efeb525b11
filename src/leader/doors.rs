//! Where a leader is reached: its listening sockets, the addresses it tells, and the client server.
//!
//! HaToKuSe and HTTP are two doors of one server: they share threads, limits and handler.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::Context;

use crate::config::leader::Redirect;
use crate::disk::fs::FileSystem;
use crate::group::PeerAddress;
use crate::leader::forward::PeerLinks;
use crate::leader::handler::ClientHandler;
use crate::leader::http::LeaderNode;
use crate::leader::server::{Addresses, Settings};
use crate::leader::state::Shared;
use crate::leader::stats::Stats;
use crate::leader::status;
use crate::net::{Door, Server};
use crate::protocol::hatokuse::{self, Hatokuse, Identity};
use crate::protocol::http::{self, Http};
use crate::threads::StopSignal;

/// The listening sockets.
pub struct Listeners {
    /// For members and other leaders.
    pub rpc: TcpListener,
    /// For clients.
    pub client: TcpListener,
    /// For clients over HTTP, if they are served.
    pub http: Option<TcpListener>,
}

impl Listeners {
    /// Binds them all.
    pub fn bind(settings: &Settings) -> anyhow::Result<Listeners> {
        Ok(Listeners {
            rpc: bind(settings.rpc_bind, "rpc")?,
            client: bind(settings.client_bind, "hatokuse")?,
            http: match settings.http_bind {
                Some(address) => Some(bind(address, "http")?),
                None => None,
            },
        })
    }

    /// Where they listen, with the real ports.
    pub fn addresses(&self) -> anyhow::Result<Addresses> {
        let http = self.http.as_ref().map(TcpListener::local_addr);
        Ok(Addresses {
            rpc: self.rpc.local_addr()?,
            client: self.client.local_addr()?,
            http: http.transpose()?,
        })
    }
}

fn bind(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address} ({what})"))
}

/// What others are told of the addresses.
pub fn advertised(addresses: &Addresses, settings: &Settings) -> PeerAddress {
    let told = |advertised: &Option<String>, bound: SocketAddr| {
        let advertised = advertised.clone();
        advertised.unwrap_or_else(|| bound.to_string())
    };
    let http = |bound| told(&settings.http_advertise, bound);
    PeerAddress {
        name: settings.name.clone(),
        rpc: told(&settings.rpc_advertise, addresses.rpc),
        client: told(&settings.client_advertise, addresses.client),
        http: addresses.http.map(http).unwrap_or_default(),
    }
}

/// Starts to serve clients.
pub fn open(
    (client, http): (TcpListener, Option<TcpListener>),
    settings: &Settings,
    shared: &Arc<Shared>,
    fs: Arc<dyn FileSystem>,
    stop: StopSignal,
) -> anyhow::Result<Server> {
    let stats = Arc::new(Stats::default());
    let place = (fs, settings.data_dir.clone());
    let forwards = settings.redirect == Redirect::Forward;
    let node = LeaderNode::new(
        Arc::clone(shared),
        Arc::clone(&stats),
        (forwards, settings.http_hosts.clone()),
        place,
        stop,
    );
    let node = Arc::new(node);
    let handler = ClientHandler::new(Arc::clone(shared));
    let handler = match settings.redirect {
        Redirect::Reply => handler,
        Redirect::Forward => handler.passing_on(Arc::new(PeerLinks::new(Arc::clone(shared)))),
    };
    let mut doors = vec![Door {
        listener: client,
        sessions: Arc::new(text_sessions(settings, shared)),
    }];
    if let Some(listener) = http {
        let payload_bytes_max = settings.payload_bytes_max;
        let limits = http::Limits { payload_bytes_max };
        let sessions = Arc::new(Http::new(limits, Arc::clone(&node) as _));
        doors.push(Door { listener, sessions });
    }
    let clock = Arc::clone(&shared.clock);
    let (limits, budget) = (settings.net.clone(), Arc::clone(&shared.budget));
    let server = Server::start_within(doors, (stats, Arc::new(handler)), clock, limits, budget)
        .context("cannot start the client ports")?;
    // Both are empty until here: only this function sets them, once for each node.
    _ = node.gauges.set(server.gauges());
    _ = shared.helpers.set(server.helpers());
    Ok(server)
}

fn text_sessions(settings: &Settings, shared: &Arc<Shared>) -> Hatokuse {
    let limits = hatokuse::Limits {
        payload_bytes_max: settings.payload_bytes_max,
    };
    let greeter = Arc::clone(shared);
    Hatokuse::new(limits, move || Identity {
        node: greeter.name.clone(),
        role: status::role(&greeter).0.to_owned(),
    })
}
