//! Service addresses: which subnets they come from and which app gets which. Pure: it is told what is
//! configured and what was kept, and answers; it never looks at the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use crate::address::Addresses;

/// Why addresses cannot be given out. Messages say what to change in agent.toml.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not written as ADDRESS/PREFIX.
    #[error("'{0}' is not a subnet; write it as 10.77.0.0/16 or fd77:7069:636f::/64")]
    Syntax(String),
    /// Bits beyond the prefix are set.
    #[error("'{text}' has bits set beyond its prefix; did you mean {network}?")]
    HostBits {
        /// As written.
        text: String,
        /// The subnet that contains it.
        network: String,
    },
    /// The IPv4 subnet has no room for the gate and one app, or the IPv6 one is narrower than it.
    #[error("{subnet} is too small; use {wanted}")]
    TooSmall {
        /// The subnet.
        subnet: String,
        /// What would do.
        wanted: &'static str,
    },
    /// An address outside the subnet.
    #[error("address {address} is outside the service subnet {subnet}; choose one from {first} to {last}")]
    Outside {
        /// The address asked for.
        address: Ipv4Addr,
        /// The service subnet.
        subnet: Ipv4Net,
        /// First address an app may have.
        first: Ipv4Addr,
        /// Last address an app may have.
        last: Ipv4Addr,
    },
    /// Network, gate or broadcast address.
    #[error("address {address} is reserved ({role}); choose one from {first} to {last}")]
    Reserved {
        /// The address asked for.
        address: Ipv4Addr,
        /// What it is reserved for.
        role: &'static str,
        /// First address an app may have.
        first: Ipv4Addr,
        /// Last address an app may have.
        last: Ipv4Addr,
    },
    /// Two apps ask for the same address.
    #[error("address {address} is given to both '{first}' and '{second}'; change one of them")]
    Twice {
        /// The address.
        address: Ipv4Addr,
        /// The app that has it.
        first: String,
        /// The app that asks for it too.
        second: String,
    },
    /// More apps than addresses.
    #[error("no address is left in {subnet} for '{app}'; use a larger subnet for network.v4")]
    Exhausted {
        /// The service subnet.
        subnet: Ipv4Net,
        /// The app without an address.
        app: String,
    },
}

/// What the subnets of both families have in common.
pub trait Family: Copy + PartialEq + fmt::Display + FromStr {
    /// Bits of an address.
    const BITS: u8;

    /// The address with all bits beyond `prefix` zero.
    #[must_use]
    fn network(self, prefix: u8) -> Self;
}

impl Family for Ipv4Addr {
    const BITS: u8 = 32;

    fn network(self, prefix: u8) -> Self {
        let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        Ipv4Addr::from_bits(self.to_bits() & !host)
    }
}

impl Family for Ipv6Addr {
    const BITS: u8 = 128;

    fn network(self, prefix: u8) -> Self {
        let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
        Ipv6Addr::from_bits(self.to_bits() & !host)
    }
}

/// A subnet, written as ADDRESS/PREFIX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net<A> {
    /// Network address, host bits zero.
    pub address: A,
    /// Prefix length, 0 to the bits of an address.
    pub prefix: u8,
}

/// An IPv4 subnet.
pub type Ipv4Net = Net<Ipv4Addr>;
/// An IPv6 subnet.
pub type Ipv6Net = Net<Ipv6Addr>;

impl<A: Family> Net<A> {
    /// Whether the address belongs to the subnet.
    pub fn contains(self, address: A) -> bool {
        address.network(self.prefix) == self.address
    }
}

impl<A: Family> FromStr for Net<A> {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let syntax = || AddressError::Syntax(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
        let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
        if prefix > A::BITS {
            return Err(syntax());
        }
        let written: A = address.parse().map_err(|_| syntax())?;
        let address = written.network(prefix);
        let net = Net { address, prefix };
        if address == written {
            Ok(net)
        } else {
            Err(AddressError::HostBits {
                text: text.to_owned(),
                network: net.to_string(),
            })
        }
    }
}

impl<A: fmt::Display> fmt::Display for Net<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl<A: fmt::Display> Serialize for Net<A> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, A: Family> Deserialize<'de> for Net<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What one app asks for.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The app.
    pub app: &'a str,
    /// `address` in agent.toml: given, or an error.
    pub configured: Option<Ipv4Addr>,
    /// What app.json remembers: given again unless it is configured for another app by now.
    pub kept: Option<Ipv4Addr>,
}

/// The pair of service subnets, known to be large enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnets {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

impl Subnets {
    /// # Errors
    /// [`AddressError::TooSmall`] when there is no room for the gate and an app, or when the IPv6 host part
    /// cannot hold the IPv4 one.
    pub fn new(v4: Ipv4Net, v6: Ipv6Net) -> Result<Self, AddressError> {
        if v4.prefix > 30 {
            return Err(AddressError::TooSmall {
                subnet: v4.to_string(),
                wanted: "a prefix of /30 or shorter",
            });
        }
        if v4.prefix < 8 {
            return Err(AddressError::TooSmall {
                subnet: format!("the part of the internet that {v4} leaves"),
                wanted: "a private subnet with a prefix of /8 or longer",
            });
        }
        if v6.prefix > 96 {
            return Err(AddressError::TooSmall {
                subnet: v6.to_string(),
                wanted: "a prefix of /96 or shorter",
            });
        }
        Ok(Subnets { v4, v6 })
    }

    /// The gate's own addresses, on its TUN device: the first host of each subnet.
    pub fn gate(&self) -> Addresses {
        self.pair(Ipv4Addr::from_bits(self.v4.address.to_bits() + 1))
    }

    /// The IPv4 service subnet.
    pub fn v4(&self) -> Ipv4Net {
        self.v4
    }

    /// The IPv6 service subnet.
    pub fn v6(&self) -> Ipv6Net {
        self.v6
    }

    fn pair(&self, v4: Ipv4Addr) -> Addresses {
        let host = v4.to_bits() - v4.network(self.v4.prefix).to_bits();
        Addresses {
            v4,
            v6: Ipv6Addr::from_bits(self.v6.address.to_bits() | u128::from(host)),
        }
    }

    /// First and last address an app may have.
    fn range(&self) -> (Ipv4Addr, Ipv4Addr) {
        let network = self.v4.address.to_bits();
        // `Subnets::new` refuses prefixes below 8 and above 30.
        let last = network + (u32::MAX >> self.v4.prefix) - 1;
        (Ipv4Addr::from_bits(network + 2), Ipv4Addr::from_bits(last))
    }

    /// The pair for an IPv4 address that an app may have.
    ///
    /// # Errors
    /// [`AddressError::Outside`] and [`AddressError::Reserved`].
    pub fn addresses(&self, v4: Ipv4Addr) -> Result<Addresses, AddressError> {
        let (first, last) = self.range();
        if !self.v4.contains(v4) {
            return Err(AddressError::Outside {
                address: v4,
                subnet: self.v4,
                first,
                last,
            });
        }
        if (first..=last).contains(&v4) {
            return Ok(self.pair(v4));
        }
        let role = if v4 > last {
            "broadcast address"
        } else if v4 == self.v4.address {
            "network address"
        } else {
            "the gate's own address"
        };
        Err(AddressError::Reserved {
            address: v4,
            role,
            first,
            last,
        })
    }

    /// Gives every app its addresses, in the order of the requests: the configured one, else the one it had,
    /// else the lowest free one. `reserved` are addresses of apps that are not asked about but may come back.
    ///
    /// # Errors
    /// As [`Subnets::addresses`] for configured addresses, [`AddressError::Twice`], [`AddressError::Exhausted`].
    pub fn allocate(
        &self,
        requests: &[Request<'_>],
        reserved: &BTreeSet<Ipv4Addr>,
    ) -> Result<Vec<Addresses>, AddressError> {
        let mut taken: BTreeMap<Ipv4Addr, &str> = BTreeMap::new();
        for request in requests {
            let Some(address) = request.configured else {
                continue;
            };
            self.addresses(address)?;
            if let Some(first) = taken.insert(address, request.app) {
                let (first, second) = (first.to_owned(), request.app.to_owned());
                return Err(AddressError::Twice {
                    address,
                    first,
                    second,
                });
            }
        }
        let mut given: Vec<Option<Ipv4Addr>> = requests.iter().map(|request| request.configured).collect();
        for (request, slot) in requests.iter().zip(&mut given) {
            let Some(kept) = request.kept.filter(|_| slot.is_none()) else {
                continue;
            };
            // The subnet may have changed since the address was kept.
            if self.addresses(kept).is_ok() && !taken.contains_key(&kept) {
                taken.insert(kept, request.app);
                *slot = Some(kept);
            }
        }
        let (first, last) = self.range();
        let mut free = (first.to_bits()..=last.to_bits()).map(Ipv4Addr::from_bits);
        let mut addresses = Vec::with_capacity(requests.len());
        for (request, slot) in requests.iter().zip(given) {
            let v4 = slot
                .or_else(|| free.find(|address| !taken.contains_key(address) && !reserved.contains(address)))
                .ok_or_else(|| AddressError::Exhausted {
                    subnet: self.v4,
                    app: request.app.to_owned(),
                })?;
            addresses.push(self.pair(v4));
        }
        Ok(addresses)
    }

    /// Addresses for one more app: the first free ones behind `last`, round to the beginning. So what an app had
    /// that is gone is given again as late as can be: clients may still know it.
    ///
    /// # Errors
    /// [`AddressError::Exhausted`]
    pub fn next(
        &self,
        app: &str,
        last: Ipv4Addr,
        taken: &BTreeSet<Ipv4Addr>,
    ) -> Result<Addresses, AddressError> {
        let (first, end) = self.range();
        let (first, end) = (first.to_bits(), end.to_bits());
        let behind = Some(last.to_bits().saturating_add(1)).filter(|next| (first..=end).contains(next));
        let behind = behind.unwrap_or(first);
        (behind..=end)
            .chain(first..behind)
            .map(Ipv4Addr::from_bits)
            .find(|address| !taken.contains(address))
            .map(|v4| self.pair(v4))
            .ok_or_else(|| AddressError::Exhausted {
                subnet: self.v4,
                app: app.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnets(v4: &str, v6: &str) -> Result<Subnets, AddressError> {
        Subnets::new(v4.parse()?, v6.parse()?)
    }

    fn default() -> Subnets {
        subnets("10.77.0.0/16", "fd77:7069:636f::/64").unwrap()
    }

    fn want(app: &str) -> Request<'_> {
        Request {
            app,
            configured: None,
            kept: None,
        }
    }

    #[test]
    fn the_gate_has_the_first_host_and_v6_carries_the_v4_host_part() {
        assert_eq!(default().gate().v4, Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(default().gate().v6.to_string(), "fd77:7069:636f::1");
        let pair = default().addresses(Ipv4Addr::new(10, 77, 1, 5)).unwrap();
        assert_eq!(pair.v6.to_string(), "fd77:7069:636f::105");
    }

    #[test]
    fn bad_subnets_are_refused_with_what_was_meant() {
        assert!(matches!("10.77.0.5/16".parse::<Ipv4Net>(),
            Err(AddressError::HostBits { network, .. }) if network == "10.77.0.0/16"));
        for text in ["10.77.0.0", "10.77.0.0/33", "10.77/16", "fd77::/64", "/16"] {
            assert!(text.parse::<Ipv4Net>().is_err(), "{text}");
        }
        assert!("fd77::1/64".parse::<Ipv6Net>().is_err());
        assert!(subnets("10.77.0.0/31", "fd77::/64").is_err());
        assert!(subnets("0.0.0.0/0", "fd77::/64").is_err());
        assert!(subnets("10.77.0.0/16", "fd77::/120").is_err());
    }

    #[test]
    fn an_address_twice_outside_or_reserved_is_refused() {
        let at = |app, v4| Request {
            app,
            configured: Some(v4),
            kept: None,
        };
        let five = Ipv4Addr::new(10, 77, 0, 5);
        let none = BTreeSet::new();
        assert!(
            matches!(default().allocate(&[at("a", five), at("b", five)], &none),
            Err(AddressError::Twice { first, second, .. }) if first == "a" && second == "b")
        );
        for (address, word) in [
            (Ipv4Addr::new(10, 78, 0, 1), "outside"),
            (Ipv4Addr::new(10, 77, 0, 0), "network"),
            (Ipv4Addr::new(10, 77, 0, 1), "gate"),
            (Ipv4Addr::new(10, 77, 255, 255), "broadcast"),
        ] {
            let error = default()
                .allocate(&[at("a", address)], &none)
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_full_subnet_is_an_error_that_names_the_app() {
        let small = subnets("10.9.0.0/30", "fd77::/64").unwrap();
        assert_eq!(
            small.allocate(&[want("a")], &BTreeSet::new()).unwrap()[0].v4,
            Ipv4Addr::new(10, 9, 0, 2)
        );
        assert!(
            matches!(small.allocate(&[want("a"), want("b")], &BTreeSet::new()),
            Err(AddressError::Exhausted { app, .. }) if app == "b")
        );
    }

    #[test]
    fn one_more_app_gets_the_next_free_address_and_the_last_ones_come_round() {
        let small = subnets("10.9.0.0/29", "fd77::/64").unwrap();
        let at = |host| Ipv4Addr::new(10, 9, 0, host);
        let next = |last, taken: &[u8]| {
            let taken = taken.iter().map(|host| at(*host)).collect();
            small.next("a", at(last), &taken).map(|given| given.v4)
        };
        assert_eq!(next(0, &[]), Ok(at(2)));
        assert_eq!(next(2, &[]), Ok(at(3)), "2 was given last, and is free again");
        assert_eq!(next(3, &[4, 5]), Ok(at(6)));
        assert_eq!(next(6, &[4, 5, 6]), Ok(at(2)));
        assert_eq!(next(255, &[2]), Ok(at(3)), "the subnet was larger before");
        assert!(matches!(
            next(4, &[2, 3, 4, 5, 6]),
            Err(AddressError::Exhausted { .. })
        ));
    }

    proptest! {
        #[test]
        fn every_app_gets_its_own_usable_address_and_keeps_it(
            configured in proptest::collection::btree_set(2u32..60, 0..8),
            kept in proptest::collection::vec(proptest::option::of(0u32..64), 0..12),
        ) {
            let net = subnets("10.9.0.0/26", "fd77::/64").unwrap();
            let base = Ipv4Addr::new(10, 9, 0, 0).to_bits();
            let names: Vec<String> = (0..configured.len() + kept.len()).map(|i| format!("app{i}")).collect();
            let mut requests: Vec<Request<'_>> = names.iter().map(|name| want(name)).collect();
            for (request, host) in requests.iter_mut().zip(&configured) {
                request.configured = Some(Ipv4Addr::from_bits(base + host));
            }
            for (request, host) in requests[configured.len()..].iter_mut().zip(&kept) {
                request.kept = host.map(|host| Ipv4Addr::from_bits(base + host));
            }
            let given = net.allocate(&requests, &BTreeSet::new()).unwrap();
            let distinct: BTreeSet<_> = given.iter().map(|a| a.v4).collect();
            prop_assert_eq!(distinct.len(), requests.len());
            for (request, got) in requests.iter_mut().zip(&given) {
                prop_assert!(net.addresses(got.v4).is_ok());
                prop_assert!(request.configured.is_none_or(|address| address == got.v4));
                request.kept = Some(got.v4);
            }
            // Whatever the order, what was given once is given again.
            requests.reverse();
            let mut again = net.allocate(&requests, &BTreeSet::new()).unwrap();
            again.reverse();
            prop_assert_eq!(again, given);
        }
    }
}
