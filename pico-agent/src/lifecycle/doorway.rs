//! How an app at rest stands to its packets: what the gate is told of it, and what in its sockets keeps it awake.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;

use super::app::App;
use super::state::State;
use crate::checkpoint::local::IMAGES_DIR;
use crate::config::ConnectionPolicy;
use crate::criu::sockets::{self as images, InetSocket, STREAM_HEAD};
use crate::gate::{Connection, Connections, Conversation, Probe, ProbeReply, Rate, WakePolicy};
use crate::sandbox::sockets::{self, Pending, Sock};

/// What the gate was last told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// The next packet that calls for the app wakes it.
    Asleep,
    /// It cannot be had now.
    Unavailable,
}

impl App {
    /// What its owner says about who wakes it, as the gate has it.
    pub(super) fn wake_policy(&self) -> WakePolicy {
        let wake = &self.config.wake;
        let probes = self.config.probes.iter().map(|probe| Probe {
            from: probe.from.0,
            reply: match probe.http {
                None => ProbeReply::Connect,
                Some(status) => ProbeReply::Http {
                    status,
                    body: probe.body.clone(),
                },
            },
        });
        WakePolicy {
            allow: wake.allow.iter().map(|source| source.0).collect(),
            deny: wake.deny.iter().map(|source| source.0).collect(),
            rate: wake.rate.map(|rate| Rate {
                times: rate.times,
                per: rate.per,
            }),
            probes: probes.collect(),
        }
    }

    /// How many connections keep it awake, where its owner wants that.
    pub(super) fn open_connections(&self) -> usize {
        if self.config.connections != ConnectionPolicy::StayAwake {
            return 0;
        }
        match sockets::list(&self.paths.netns) {
            Ok(socks) => socks.iter().filter(|sock| sock.is_connection()).count(),
            Err(error) => {
                tracing::warn!(app = self.config.name, %error, "its connections cannot be counted");
                0
            }
        }
    }

    /// What the gate is told of connections that sleep with the app.
    pub(super) fn sleeping_connections(&self) -> Connections {
        match (self.state(), self.config.connections) {
            (_, ConnectionPolicy::Close) => Connections::default(),
            (State::Warm | State::Cold | State::SwappingIn { .. }, _) => self.record.connections.clone(),
            _ => Connections::default(),
        }
    }

    /// Tells the gate how the app stands, where that has changed. While it runs or is in between there is nothing to
    /// tell: holding and releasing are steps of a swap.
    pub(super) async fn mind_gate(&mut self) {
        let told = match self.state() {
            State::Warm | State::Cold => match self.after_wake() {
                None => Some(Told::Asleep),
                Some(after) if after.refuse => Some(Told::Unavailable),
                // What has come and what comes waits for the next try.
                Some(_) => None,
            },
            // What comes for an app that is started again in a moment waits for that.
            State::Stopped | State::Failed { .. } if !self.restarts() => Some(Told::Unavailable),
            _ => None,
        };
        if told == self.told {
            return;
        }
        self.told = told;
        let close = self.config.connections == ConnectionPolicy::Close;
        let connections = self.sleeping_connections();
        let (gate, name) = (&self.host.gate, &self.config.name);
        match told {
            Some(Told::Asleep) => {
                gate.asleep(name, connections).await;
                for connection in self.record.connections.tcp().iter().filter(|_| close) {
                    gate.reset(name, connection).await;
                }
            }
            Some(Told::Unavailable) => gate.refuse(name, connections).await,
            None => {}
        }
    }

    /// What is on its way in the sockets of the stopped app and speaks against ending it now. What a dump keeps speaks
    /// against it only if it is new since the last try: an app may leave something unread for ever.
    pub(super) fn pending(&mut self) -> Result<(), String> {
        let socks = sockets::list(&self.paths.netns)
            .map_err(|error| format!("its sockets cannot be looked at: {error}"))?;
        let pending: HashSet<Pending> = socks.iter().filter_map(Sock::pending).collect();
        let before = std::mem::replace(&mut self.pending_before, pending);
        let mut speaks = self
            .pending_before
            .iter()
            .filter(|pending| pending.is_lost_by_a_dump() || !before.contains(pending));
        match speaks.next() {
            None => Ok(()),
            Some(first) => Err(match speaks.count() {
                0 => format!("called off: {first}"),
                more => format!("called off: {first}, and {more} more"),
            }),
        }
    }

    /// The connections in a checkpoint on this disk. What cannot be read there is left out, and said.
    pub(super) fn checkpoint_connections(&self, generation: u64) -> Connections {
        let dir = self.paths.checkpoint(generation).join(IMAGES_DIR);
        let sockets = std::fs::read(dir.join("files.img"))
            .map_err(|error| error.to_string())
            .and_then(|bytes| images::inet_sockets(&bytes).map_err(|error| error.to_string()))
            .unwrap_or_else(|error| {
                tracing::warn!(
                    app = self.config.name,
                    error,
                    "the sockets in its checkpoint cannot be read"
                );
                Vec::new()
            });
        let own = self.record.addresses.both();
        let outside = sockets
            .iter()
            .filter(|socket| own.contains(&socket.local.ip()) && !own.contains(&socket.peer.ip()));
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for socket in outside {
            let (local, peer) = (socket.local, socket.peer);
            if socket.tcp && (socket.established || socket.peer_ended) {
                let head = read_head(&dir.join(images::stream_image(socket.inode)));
                let connection = head
                    .map_err(|error| error.to_string())
                    .and_then(|head| images::stream(&head).map_err(|error| error.to_string()))
                    .map(|stream| connection(socket, &stream));
                match connection {
                    Ok(connection) => tcp.push(connection),
                    Err(error) => {
                        tracing::warn!(app = self.config.name, %local, %peer, error, "a connection cannot be read");
                    }
                }
            } else if !socket.tcp && peer.port() != 0 {
                udp.push(Conversation { local, peer });
            }
        }
        Connections::new(tcp, udp)
    }
}

fn connection(socket: &InetSocket, stream: &images::Stream) -> Connection {
    Connection {
        local: socket.local,
        peer: socket.peer,
        snd_nxt: stream.snd_nxt,
        rcv_nxt: stream.rcv_nxt,
        receive_window: stream.rcv_wnd,
        window_scale: stream.rcv_wscale,
        timestamp: stream.timestamp,
        owes: stream.unacknowledged > 0,
    }
}

fn read_head(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(STREAM_HEAD).read_to_end(&mut head)?;
    Ok(head)
}
