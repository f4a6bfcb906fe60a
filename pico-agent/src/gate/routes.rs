//! The gate's routes, rules and addresses: what sends an app's packets to the TUN or to the app. Makes them so
//! whatever was there before, and takes them away. Knows no packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Addresses, GateConfig, GateError};
use crate::netlink::{self, MAIN_TABLE, Netlink, NetlinkError, PROTOCOL, Request, Watch};
use crate::sysctl;

/// Packets the TUN keeps for us while nobody reads it, one release at its longest. The kernel's default of 500
/// is a few milliseconds of a fast sender.
const TUN_QUEUE: u32 = 8192;

/// The gate's hold on the routing tables of one network namespace.
pub struct Routes {
    netlink: Netlink,
    own: Vec<IpAddr>,
    table: u32,
}

impl Routes {
    /// Makes device, addresses, subnet routes, rule and catch-all routes as the configuration wants them. Routes
    /// of hot apps are left alone; what an older configuration left on the same TUN goes.
    pub fn establish(config: &GateConfig) -> Result<Self, GateError> {
        let mut netlink = Netlink::open()?;
        let mut watch = Watch::open()?;
        let tun = netlink.require(&config.tun)?;
        // Packets of this host's own clients come back in by the TUN with a local source address.
        sysctl::write(&format!("ipv4/conf/{}/accept_local", config.tun), "1")?;
        sysctl::loosen_reverse_path(&config.tun)?;
        sysctl::enable_ipv6(&config.tun)?;
        netlink.run(vec![
            Request::change(
                netlink::no_link_local(tun),
                "keep the TUN from a link-local address",
            )
            .forgive(&[libc::EAFNOSUPPORT]),
            Request::change(
                netlink::link_up(tun, vec![LinkAttribute::TxQueueLen(TUN_QUEUE)]),
                format!("bring {} up", config.tun),
            ),
        ])?;

        watch.until_running(tun)?;

        let subnets = config.usable_subnets();
        let mut requests = Vec::new();
        for address in listed_addresses(&mut netlink, tun)? {
            if subnets.iter().all(|subnet| subnet.own != address) && !is_link_local(address) {
                let message = match netlink::address(tun, address, AddressScope::Universe) {
                    RouteNetlinkMessage::NewAddress(message) => RouteNetlinkMessage::DelAddress(message),
                    other => other,
                };
                requests.push(Request::take_away(
                    message,
                    format!("take {address} from the TUN"),
                ));
            }
        }
        for rule in rules_of(&mut netlink, &config.tun)? {
            let wanted = Rule {
                table: config.table,
                priority: config.rule_priority,
            };
            if rule.1 != wanted {
                requests.push(rule_removal(config, rule));
            }
        }
        let main = listed_routes(&mut netlink)?;
        for route in &main {
            let on_tun =
                is_ours(route) && output(route) == Some(tun) && netlink::table_of(route) == MAIN_TABLE;
            if on_tun
                && subnets
                    .iter()
                    .all(|subnet| destination(route) != Some(subnet.prefix()))
            {
                requests.push(route_removal(route));
            }
        }
        for subnet in &subnets {
            let own = subnet.own;
            requests.push(Request::put(
                netlink::address(tun, own, AddressScope::Universe),
                format!("give {own} to {}", config.tun),
            ));
            // A rule that would send us a packet back, were it not for this, round and round.
            let mut nowhere = netlink::route(subnet.network, subnet.length, config.table);
            nowhere.header.kind = RouteType::BlackHole;
            requests.push(Request::put(
                RouteNetlinkMessage::NewRoute(nowhere),
                format!("close table {}", config.table),
            ));
            let family = netlink::family(own);
            requests.push(
                Request::add(
                    rule_message(family, config),
                    format!("add the rule of {}", config.tun),
                )
                .forgive(&[libc::EEXIST]),
            );
        }
        netlink.run(requests)?;

        for subnet in &subnets {
            watch.until_local(subnet.own)?;
        }

        // Last: only now do packets come, and there is somewhere for them to go.
        for subnet in &subnets {
            let there = main
                .iter()
                .filter(|route| netlink::table_of(route) == MAIN_TABLE)
                .find(|route| destination(route) == Some(subnet.prefix()));
            match there {
                Some(route) if output(route) == Some(tun) => continue,
                Some(_) => {
                    return Err(GateError::SubnetTaken {
                        subnet: format!("{}/{}", subnet.network, subnet.length),
                    });
                }
                None => {}
            }
            let mut route = netlink::route(subnet.network, subnet.length, MAIN_TABLE);
            route.attributes.push(RouteAttribute::Oif(tun));
            route
                .attributes
                .push(RouteAttribute::PrefSource(subnet.own.into()));
            if subnet.own.is_ipv4() {
                route.header.scope = RouteScope::Link;
            }
            let what = format!("route {}/{} to {}", subnet.network, subnet.length, config.tun);
            netlink.run(vec![Request::add(RouteNetlinkMessage::NewRoute(route), what)])?;
        }
        let own = subnets.iter().map(|subnet| subnet.own).collect();
        Ok(Self {
            netlink,
            own,
            table: config.table,
        })
    }

    /// The index of an app's host-side device.
    pub fn link(&mut self, name: &str) -> Result<u32, NetlinkError> {
        self.netlink.require(name)
    }

    /// What is written to the TUN for the app goes to its device.
    pub fn open_table(&mut self, app: Addresses, link: u32) -> Result<(), NetlinkError> {
        let requests = self.families(app).map(|(address, _)| {
            let route = to_device(address, link, self.table);
            Request::put(
                RouteNetlinkMessage::NewRoute(route),
                format!("route {address} in table {}", self.table),
            )
        });
        let requests = requests.collect();
        self.netlink.run(requests)
    }

    /// What anybody sends to one address of the app goes to its device, past the TUN.
    pub fn open_main(&mut self, address: IpAddr, link: u32) -> Result<(), NetlinkError> {
        let Some(own) = self.own_for(address) else {
            return Ok(());
        };
        let mut route = to_device(address, link, MAIN_TABLE);
        // The same source address as by way of the TUN, or a connection of this host's own clients would change
        // its name in mid-flight.
        route.attributes.push(RouteAttribute::PrefSource(own.into()));
        let what = format!("route {address} past the TUN");
        self.netlink
            .run(vec![Request::put(RouteNetlinkMessage::NewRoute(route), what)])
    }

    /// What anybody sends the app goes to the TUN.
    pub fn close_main(&mut self, app: Addresses) -> Result<(), NetlinkError> {
        let requests = self.families(app).map(|(address, _)| {
            let mut route = netlink::route(address, netlink::host_prefix(address), MAIN_TABLE);
            // Whatever its scope.
            route.header.scope = RouteScope::NoWhere;
            Request::take_away(
                RouteNetlinkMessage::DelRoute(route),
                format!("take the route to {address} away"),
            )
        });
        let requests = requests.collect();
        self.netlink.run(requests)
    }

    /// The gate's own address of an address's family; none when that family is not in use.
    fn own_for(&self, address: IpAddr) -> Option<IpAddr> {
        self.own
            .iter()
            .copied()
            .find(|own| own.is_ipv4() == address.is_ipv4())
    }

    /// The app's address and the gate's own, for each family that is in use.
    fn families(&self, app: Addresses) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        app.both().into_iter().filter_map(|address| {
            let own = self.own_for(address)?;
            Some((address, own))
        })
    }
}

fn to_device(address: IpAddr, link: u32, table: u32) -> RouteMessage {
    let mut route = netlink::route(address, netlink::host_prefix(address), table);
    route.attributes.push(RouteAttribute::Oif(link));
    if address.is_ipv4() {
        route.header.scope = RouteScope::Link;
    }
    route
}

/// Takes away everything that [`Routes::establish`] and the route changes may have left, the TUN included.
pub fn remove(config: &GateConfig) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open()?;
    let mut requests = Vec::new();
    for rule in rules_of(&mut netlink, &config.tun)? {
        requests.push(rule_removal(config, rule));
    }
    let subnets = config.subnets();
    for route in listed_routes(&mut netlink)? {
        let within = destination(&route).is_some_and(|(address, length)| {
            subnets
                .iter()
                .any(|subnet| subnet.contains(address) && length >= subnet.length)
        });
        let table = netlink::table_of(&route);
        if is_ours(&route) && within && (table == MAIN_TABLE || table == config.table) {
            requests.push(route_removal(&route));
        }
    }
    requests.push(netlink::link_delete(&config.tun));
    netlink.run(requests)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    table: u32,
    priority: u32,
}

fn rule_message(family: AddressFamily, config: &GateConfig) -> RouteNetlinkMessage {
    let rule = Rule {
        table: config.table,
        priority: config.rule_priority,
    };
    let mut message = rule_key(family, &config.tun, rule);
    message.attributes.push(RuleAttribute::Protocol(PROTOCOL));
    RouteNetlinkMessage::NewRule(message)
}

fn rule_removal(config: &GateConfig, (family, rule): (AddressFamily, Rule)) -> Request {
    let message = RouteNetlinkMessage::DelRule(rule_key(family, &config.tun, rule));
    Request::take_away(message, format!("take the rule of {} away", config.tun))
}

fn rule_key(family: AddressFamily, tun: &str, rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Iifname(tun.to_owned()));
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message
}

/// The rules for what comes in by the TUN.
fn rules_of(netlink: &mut Netlink, tun: &str) -> Result<Vec<(AddressFamily, Rule)>, NetlinkError> {
    let mut rules = Vec::new();
    for family in families() {
        let mut query = RuleMessage::default();
        query.header.family = family;
        for message in netlink.dump(RouteNetlinkMessage::GetRule(query))? {
            let RouteNetlinkMessage::NewRule(message) = message else {
                continue;
            };
            let mut rule = Rule {
                table: u32::from(message.header.table),
                priority: 0,
            };
            let mut by_tun = false;
            for attribute in &message.attributes {
                match attribute {
                    RuleAttribute::Iifname(name) => by_tun = name == tun,
                    RuleAttribute::Table(table) => rule.table = *table,
                    RuleAttribute::Priority(priority) => rule.priority = *priority,
                    _ => {}
                }
            }
            if by_tun {
                rules.push((family, rule));
            }
        }
    }
    Ok(rules)
}

fn families() -> impl Iterator<Item = AddressFamily> {
    [AddressFamily::Inet]
        .into_iter()
        .chain(sysctl::has_ipv6().then_some(AddressFamily::Inet6))
}

fn listed_routes(netlink: &mut Netlink) -> Result<Vec<RouteMessage>, NetlinkError> {
    let mut routes = Vec::new();
    for family in families() {
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        for message in netlink.dump(RouteNetlinkMessage::GetRoute(query))? {
            if let RouteNetlinkMessage::NewRoute(route) = message {
                routes.push(route);
            }
        }
    }
    Ok(routes)
}

fn listed_addresses(netlink: &mut Netlink, index: u32) -> Result<Vec<IpAddr>, NetlinkError> {
    let listed = netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let of_device = listed.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(message) if message.header.index == index => Some(message),
        _ => None,
    });
    Ok(of_device
        .filter_map(|message| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        })
        .collect())
}

fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == PROTOCOL
}

fn output(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn destination(route: &RouteMessage) -> Option<(IpAddr, u8)> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    address.map(|address| (address, route.header.destination_prefix_length))
}

fn route_removal(route: &RouteMessage) -> Request {
    let mut message = RouteMessage::default();
    message.header = route.header.clone();
    message.header.flags = Default::default();
    message.attributes = route
        .attributes
        .iter()
        .filter(|attribute| {
            matches!(
                attribute,
                RouteAttribute::Destination(_) | RouteAttribute::Table(_)
            )
        })
        .cloned()
        .collect();
    if route.header.kind == RouteType::Unicast {
        message.attributes.extend(output(route).map(RouteAttribute::Oif));
    }
    Request::take_away(RouteNetlinkMessage::DelRoute(message), "take a route away")
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// A service subnet of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// Its first address.
    pub network: IpAddr,
    /// Its prefix length.
    pub length: u8,
    /// The gate's own address: the second one.
    pub own: IpAddr,
}

impl Subnet {
    /// The IPv4 subnet that contains an address; `None` unless its prefix length leaves room for apps.
    pub fn v4((address, length): (Ipv4Addr, u8)) -> Option<Self> {
        if !(1..=30).contains(&length) {
            return None;
        }
        let network = address.to_bits() & u32::MAX << (32 - length);
        Some(Self {
            network: Ipv4Addr::from_bits(network).into(),
            length,
            own: Ipv4Addr::from_bits(network | 1).into(),
        })
    }

    /// The same for IPv6.
    pub fn v6((address, length): (Ipv6Addr, u8)) -> Option<Self> {
        if !(1..=126).contains(&length) {
            return None;
        }
        let network = address.to_bits() & u128::MAX << (128 - length);
        Some(Self {
            network: Ipv6Addr::from_bits(network).into(),
            length,
            own: Ipv6Addr::from_bits(network | 1).into(),
        })
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let other = match address {
            IpAddr::V4(address) => Self::v4((address, self.length)),
            IpAddr::V6(address) => Self::v6((address, self.length)),
        };
        other.is_some_and(|other| other.network == self.network)
    }

    fn prefix(&self) -> (IpAddr, u8) {
        (self.network, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_knows_its_first_addresses_and_what_is_in_it() {
        let subnet = Subnet::v4((Ipv4Addr::new(10, 77, 3, 9), 16));
        let expected = Subnet {
            network: IpAddr::from([10, 77, 0, 0]),
            length: 16,
            own: IpAddr::from([10, 77, 0, 1]),
        };
        assert_eq!(subnet, Some(expected));
        assert!(expected.contains(IpAddr::from([10, 77, 255, 255])));
        assert!(!expected.contains(IpAddr::from([10, 78, 0, 0])));
        assert!(!expected.contains(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        let subnet = Subnet::v6((Ipv6Addr::new(0xfd77, 0, 0, 0, 1, 2, 3, 4), 64));
        assert_eq!(
            subnet.map(|subnet| subnet.own),
            Some(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1).into())
        );
    }

    #[test]
    fn a_subnet_without_room_for_apps_is_none() {
        for length in [0, 31, 32, 33, 255] {
            assert_eq!(Subnet::v4((Ipv4Addr::LOCALHOST, length)), None, "{length}");
        }
        for length in [0, 127, 128, 129] {
            assert_eq!(Subnet::v6((Ipv6Addr::LOCALHOST, length)), None, "{length}");
        }
    }
}
