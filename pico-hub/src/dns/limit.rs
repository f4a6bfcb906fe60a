//! How many answers a client network gets over UDP, whose source anyone can forge. Beyond its rate every second
//! answer is truncated to nothing, which is no bigger than the question and brings a real client to TCP.

use std::net::IpAddr;
use std::time::Instant;

use super::network;
use super::recent::Recent;

/// Four networks each: 65,536 of them in 2.5 MiB.
const ROWS: usize = 16_384;
/// Of the answers beyond the rate, one in so many is truncated; the others are not sent.
const SLIP: u8 = 2;

/// What becomes of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Answer,
    Truncate,
    Drop,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Answers that may still be sent; at most what a second gives.
    credit: f64,
    filled: Instant,
    beyond: u8,
}

/// Counts answers by network.
#[derive(Debug)]
pub(super) struct Limiter {
    /// Per second; 0: no limit.
    rate: f64,
    networks: Recent<Bucket>,
}

impl Limiter {
    pub(super) fn new(answers_per_second: u32) -> Self {
        Limiter {
            rate: f64::from(answers_per_second),
            networks: Recent::new(if answers_per_second == 0 { 1 } else { ROWS }),
        }
    }

    /// What becomes of a datagram that `client` sent.
    pub(super) fn judge(&mut self, client: IpAddr, now: Instant) -> Verdict {
        if self.rate == 0.0 {
            return Verdict::Answer;
        }
        let new = Bucket {
            credit: self.rate,
            filled: now,
            beyond: 0,
        };
        let bucket = self.networks.entry(network(client), now, new);
        let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.credit = (bucket.credit + passed * self.rate).min(self.rate);
        bucket.filled = now;
        if bucket.credit >= 1.0 {
            bucket.credit -= 1.0;
            bucket.beyond = 0;
            return Verdict::Answer;
        }
        bucket.beyond = (bucket.beyond + 1) % SLIP;
        match bucket.beyond {
            0 => Verdict::Truncate,
            _ => Verdict::Drop,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn client(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_gets_its_rate_and_of_the_rest_one_in_two_is_truncated() {
        let now = Instant::now();
        let mut limiter = Limiter::new(10);
        for i in 0..10 {
            assert_eq!(
                limiter.judge(client(&format!("192.0.2.{i}")), now),
                Verdict::Answer
            );
        }
        let beyond: Vec<Verdict> = (0..4).map(|_| limiter.judge(client("192.0.2.77"), now)).collect();
        assert_eq!(
            beyond,
            [Verdict::Drop, Verdict::Truncate, Verdict::Drop, Verdict::Truncate]
        );
        assert_eq!(
            limiter.judge(client("192.0.3.1"), now),
            Verdict::Answer,
            "another network has its own"
        );
        let later = now + Duration::from_millis(100);
        assert_eq!(limiter.judge(client("192.0.2.1"), later), Verdict::Answer);
        assert_ne!(limiter.judge(client("192.0.2.1"), later), Verdict::Answer);
    }

    #[test]
    fn a_pause_gives_a_second_of_answers_and_no_more() {
        let now = Instant::now();
        let mut limiter = Limiter::new(5);
        let later = now + Duration::from_secs(3600);
        limiter.judge(client("2001:db8::1"), now);
        let answered = (0..20)
            .filter(|i| limiter.judge(client(&format!("2001:db8::{i}")), later) == Verdict::Answer)
            .count();
        assert_eq!(answered, 5);
        assert_eq!(limiter.judge(client("2001:db8:0:100::1"), later), Verdict::Answer);
    }

    #[test]
    fn an_ipv4_client_of_a_dual_stack_socket_is_the_same_network() {
        assert_eq!(network(client("::ffff:192.0.2.5")), network(client("192.0.2.9")));
    }

    #[test]
    fn no_limit_is_no_limit() {
        let mut limiter = Limiter::new(0);
        let now = Instant::now();
        assert!((0..10_000).all(|_| limiter.judge(client("192.0.2.1"), now) == Verdict::Answer));
    }
}
