//! Connections: messages with their length before them, answered one after the other (RFC 7766). So many at once, so
//! many of one client network, and none that does not get on.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::network;
use super::service::Service;

/// Connections at once, of all clients.
const ALL: usize = 512;
/// Connections at once of one client network.
const OF_ONE: usize = 32;
/// For a whole question to come, and for a whole answer to be taken: slow bytes do not prolong it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest question that is read.
const QUESTION_BYTES: usize = 4_096;
/// After `accept` failed for want of descriptors or memory, which only time mends.
const PAUSE: Duration = Duration::from_millis(50);

/// Counts connections by client network.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A counted connection; given back when dropped.
struct Place {
    connections: Connections,
    network: IpAddr,
}

impl Connections {
    pub(super) fn new() -> Self {
        Connections::default()
    }

    fn take(&self, client: IpAddr) -> Option<Place> {
        let network = network(client);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let of_network = open.get(&network).copied().unwrap_or(0);
        if of_network >= OF_ONE || open.values().sum::<usize>() >= ALL {
            return None;
        }
        open.insert(network, of_network + 1);
        Some(Place {
            connections: self.clone(),
            network,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self
            .connections
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.network);
            }
        }
    }
}

/// Takes connections until it is told to stop; those that are open end then.
pub(super) async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    connections: Connections,
    stop: CancellationToken,
) {
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => match connections.take(client.ip()) {
                Some(place) => {
                    open.spawn(converse(stream, client, Arc::clone(&service), place));
                }
                None => service.count(|counts| &counts.turned_away),
            },
            Err(error) => {
                tracing::warn!(%error, "a DNS connection was not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, client: SocketAddr, service: Arc<Service>, _place: Place) {
    // Answers are small and wait for nothing; whether this works makes no difference to what is answered.
    let _ = stream.set_nodelay(true);
    loop {
        match timeout(PATIENCE, exchange(&mut stream, client, &service)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::debug!(%client, %error, "a DNS connection ended");
                return;
            }
        }
    }
}

/// One question and its answer; false when the connection is to end.
async fn exchange(stream: &mut TcpStream, client: SocketAddr, service: &Service) -> io::Result<bool> {
    let length = usize::from(stream.read_u16().await?);
    if length > QUESTION_BYTES {
        return Ok(false);
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    let Some(reply) = service.message(&question, client) else {
        return Ok(false);
    };
    let Ok(length) = u16::try_from(reply.bytes.len()) else {
        return Ok(false);
    };
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(&reply.bytes);
    stream.write_all(&framed).await?;
    service.answered(&reply);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_per_network_and_in_all_and_given_back() {
        let connections = Connections::new();
        let take = |a: u8, b: u8| connections.take(IpAddr::from([192, 0, a, b]));
        let hosts = || 0..u8::try_from(OF_ONE).unwrap();
        let mut places: Vec<Place> = hosts().filter_map(|b| take(0, b)).collect();
        assert_eq!(places.len(), OF_ONE);
        assert!(take(0, 200).is_none());
        for a in 1..=20 {
            places.extend(hosts().filter_map(|b| take(a, b)));
        }
        assert_eq!(places.len(), ALL);
        assert!(take(99, 1).is_none());
        places.pop();
        assert!(take(99, 1).is_some());
        drop(places);
        assert!(connections.open.lock().unwrap().is_empty());
    }
}
