//! One message: may it be answered, what is the answer, who is told. Shared by all sockets; what is counted is
//! counted here.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hickory_server::proto::op::ResponseCode;

use super::limit::{Limiter, Verdict};
use super::respond::{self, Reply, Transport};
use super::soon::Told;
use super::zone::Zone;
use super::{DnsConfig, Names, Soon};

/// What has happened, since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answers with data, and those that say that there is none of that type.
    pub no_error: AtomicU64,
    /// Names that do not exist.
    pub nx_domain: AtomicU64,
    /// Not for this server: another zone, another class, ANY, a transfer.
    pub refused: AtomicU64,
    /// Malformed messages, unknown operations, unknown versions of EDNS.
    pub malformed: AtomicU64,
    /// Answers cut to nothing because a client network was beyond its rate.
    pub slipped: AtomicU64,
    /// Left without an answer for the same reason.
    pub dropped: AtomicU64,
    /// Answers that the kernel had no room for.
    pub unsent: AtomicU64,
    /// TCP connections that were closed at once because there were too many.
    pub turned_away: AtomicU64,
    /// How often an agent was told that a client is near.
    pub told: AtomicU64,
}

/// Answers messages.
pub(super) struct Service {
    zone: Zone,
    names: Arc<dyn Names>,
    limiter: Mutex<Limiter>,
    told: Mutex<Told>,
    counts: Arc<Counts>,
}

impl Service {
    pub(super) fn new(zone: Zone, names: Arc<dyn Names>, config: &DnsConfig) -> Self {
        Service {
            zone,
            names,
            limiter: Mutex::new(Limiter::new(config.answers_per_second)),
            told: Mutex::new(Told::new(Instant::now())),
            counts: Arc::default(),
        }
    }

    pub(super) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Counts one more of something.
    pub(super) fn count(&self, counter: impl FnOnce(&Counts) -> &AtomicU64) {
        counter(&self.counts).fetch_add(1, Ordering::Relaxed);
    }

    /// The answer to a datagram.
    pub(super) fn datagram(&self, message: &[u8], client: SocketAddr) -> Option<Reply> {
        match lock(&self.limiter).judge(client.ip(), Instant::now()) {
            Verdict::Answer => self.reply(message, client, Transport::Udp),
            Verdict::Truncate => {
                self.count(|counts| &counts.slipped);
                respond::truncated(message, client)
            }
            Verdict::Drop => {
                self.count(|counts| &counts.dropped);
                None
            }
        }
    }

    /// The answer to a message that came by a connection.
    pub(super) fn message(&self, message: &[u8], client: SocketAddr) -> Option<Reply> {
        self.reply(message, client, Transport::Tcp)
    }

    fn reply(&self, message: &[u8], client: SocketAddr, transport: Transport) -> Option<Reply> {
        let reply = respond::reply(&self.zone, &*self.names, message, client, transport)?;
        self.count(|counts| match reply.code {
            ResponseCode::NoError => &counts.no_error,
            ResponseCode::NXDomain => &counts.nx_domain,
            ResponseCode::Refused => &counts.refused,
            _ => &counts.malformed,
        });
        Some(reply)
    }

    /// To be called when the answer has been sent: tells the agent of the app that was asked for. Says whether there was
    /// something to tell.
    pub(super) fn answered(&self, reply: &Reply) -> bool {
        let Some((app, soon)) = &reply.soon else {
            return false;
        };
        let tell = lock(&self.told).tell(app, Instant::now());
        if tell {
            self.count(|counts| &counts.told);
            self.names.soon(app, *soon == Soon::Wake);
        }
        tell
    }
}

/// What a panic left is whole: each change to it is a number or two.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
