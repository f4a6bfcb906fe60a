//! Who may wake an app, as its owner wants it. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::limit::Rate;

/// What an app's owner says about wakes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WakePolicy {
    /// Only these wake; empty: everybody.
    pub allow: Vec<IpNet>,
    /// These never wake, whatever `allow` says.
    pub deny: Vec<IpNet>,
    /// How often one source may wake.
    pub rate: Option<Rate>,
    /// Who only wants to know whether the app is there, and is told so without waking it.
    pub probes: Vec<Probe>,
}

/// Somebody who is answered by the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Where they ask from.
    pub from: IpNet,
    /// What they are told.
    pub reply: ProbeReply,
}

/// What a probe is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeReply {
    /// A connection is accepted, and ended when the prober ends it.
    Connect,
    /// One HTTP response, whatever was asked.
    Http {
        /// Such as 200.
        status: u16,
        /// Its content, as text/plain.
        body: String,
    },
}

/// What the policy says of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// May wake, as far as its address goes.
    Wakes,
    /// In `deny`, by its place there.
    Denied(usize),
    /// Not in `allow`.
    NotAllowed,
    /// In `probes`, by its place there.
    Probe(usize),
}

impl WakePolicy {
    /// What becomes of a source, by its address.
    pub fn admission(&self, source: IpAddr) -> Admission {
        let holds = |net: &IpNet| net.contains(&source);
        if let Some(place) = self.deny.iter().position(holds) {
            return Admission::Denied(place);
        }
        if let Some(place) = self.probes.iter().position(|probe| holds(&probe.from)) {
            return Admission::Probe(place);
        }
        if self.allow.is_empty() || self.allow.iter().any(holds) {
            Admission::Wakes
        } else {
            Admission::NotAllowed
        }
    }
}

/// Why a packet woke nothing: what the counts are kept by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// An echo request, answered.
    Ping,
    /// Old news on a connection, acknowledged.
    Keepalive,
    /// A bare acknowledgement, or one for a connection that the app does not have.
    Acknowledgement,
    /// For a port that is not published, or on no connection.
    Unpublished,
    /// A protocol without ports, or a piece of a packet whose begin did not come.
    Protocol,
    /// Its source is in `deny`, by its place there.
    Deny(usize),
    /// Its source is not in `allow`.
    NotAllowed,
    /// Its source has woken the app too often.
    Rate,
    /// A probe, by its place in the policy, answered.
    Probe(usize),
    /// The app cannot be woken just now.
    Unavailable,
}

impl Rule {
    /// In words for the owner.
    pub fn words(self, policy: &WakePolicy) -> String {
        let net = |nets: &[IpNet], place: usize| nets.get(place).map(IpNet::to_string).unwrap_or_default();
        match self {
            Rule::Ping => "ping, answered".into(),
            Rule::Keepalive => "keepalive, answered".into(),
            Rule::Acknowledgement => "acknowledgement".into(),
            Rule::Unpublished => "port not published, or no such connection".into(),
            Rule::Protocol => "neither TCP nor UDP, or a fragment".into(),
            Rule::Deny(place) => format!("wake.deny {}", net(&policy.deny, place)),
            Rule::NotAllowed => "not in wake.allow".into(),
            Rule::Rate => "wake.rate".into(),
            Rule::Probe(place) => {
                let from = policy.probes.get(place).map(|probe| probe.from.to_string());
                format!("probe from {}, answered", from.unwrap_or_default())
            }
            Rule::Unavailable => "could not be woken just then".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_comes_before_probes_and_probes_before_allow() {
        let net = |text: &str| text.parse().expect("a subnet");
        let policy = WakePolicy {
            allow: vec![net("10.0.0.0/8"), net("2001:db8::/32")],
            deny: vec![net("192.0.2.0/24"), net("10.9.0.0/16")],
            rate: None,
            probes: vec![
                Probe {
                    from: net("10.9.9.0/24"),
                    reply: ProbeReply::Connect,
                },
                Probe {
                    from: net("10.8.0.0/24"),
                    reply: ProbeReply::Connect,
                },
            ],
        };
        let admission = |source: &str| policy.admission(source.parse().expect("an address"));
        assert_eq!(admission("10.1.2.3"), Admission::Wakes);
        assert_eq!(admission("2001:db8::5"), Admission::Wakes);
        assert_eq!(admission("10.9.9.9"), Admission::Denied(1));
        assert_eq!(admission("10.8.0.9"), Admission::Probe(1));
        assert_eq!(admission("203.0.113.1"), Admission::NotAllowed);
        assert_eq!(
            WakePolicy::default().admission("203.0.113.1".parse().expect("an address")),
            Admission::Wakes
        );
        assert_eq!(Rule::Deny(1).words(&policy), "wake.deny 10.9.0.0/16");
    }
}
