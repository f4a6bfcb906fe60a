//! The table as text for nft(8). Pure.
//!
//! No connection tracking: switched on for these rules it would be on for all of the host's traffic. A TCP connection
//! is begun by a segment with SYN and without ACK; all others belong to one that was let in. For UDP, who was asked
//! by whom is kept in a set for some minutes.

use std::fmt::Write;

use super::FenceConfig;
use crate::address::Addresses;
use crate::port::Port;

/// Where clouds hand out credentials to whoever asks from the host (link-local as a whole: it is never routed).
const METADATA_V4: &str = "169.254.0.0/16, 168.63.129.16, 100.100.100.200";
const METADATA_V6: &str = "fd00:ec2::254, fe80::/10";

/// One app, as the fence knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// The host's end of its veth pair; need not exist.
    pub link: String,
    /// Its own: it may send under no others.
    pub addresses: Addresses,
    /// What other apps may reach of it.
    pub ports: Vec<Port>,
}

/// A name for the table: letters, digits and `_`, whatever the device is called.
fn name(config: &FenceConfig) -> String {
    let plain = config
        .tun
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    format!("inet pico_{}", plain.collect::<String>())
}

/// Removes the table, and nothing where there is none.
pub(super) fn no_table(config: &FenceConfig) -> String {
    let name = name(config);
    format!("add table {name}\ndelete table {name}\n")
}

/// The table in place of any older one, without apps.
pub(super) fn table(config: &FenceConfig) -> String {
    let (gone, name) = (no_table(config), name(config));
    let (v4, v6) = (config.v4, config.v6);
    let host_ports: Vec<String> = config
        .host_ports
        .iter()
        .map(|port| format!("{} . {}", port.proto, port.number))
        .collect();
    let host_ports = match host_ports.as_slice() {
        [] => String::new(),
        ports => format!("meta l4proto . th dport {{ {} }} accept", ports.join(", ")),
    };
    format!(
        r#"{gone}table {name} {{
  set links {{ type ifname; }}
  set own4 {{ type ifname . ipv4_addr; }}
  set own6 {{ type ifname . ipv6_addr; }}
  set published4 {{ type ipv4_addr . inet_proto . inet_service; }}
  set published6 {{ type ipv6_addr . inet_proto . inet_service; }}
  set asked4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m; size 65536; }}
  set asked6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service; flags dynamic,timeout; timeout 5m; size 65536; }}

  chain answers {{
    meta nfproto ipv4 iifname . ip saddr != @own4 drop
    meta nfproto ipv6 iifname . ip6 saddr != @own6 drop
    ip frag-off & 0x1fff != 0 accept
    exthdr frag exists frag frag-off != 0 accept
    tcp flags & (syn | ack) != syn accept
    ip saddr . udp sport . ip daddr . udp dport @asked4 accept
    ip6 saddr . udp sport . ip6 daddr . udp dport @asked6 accept
    icmp type {{ echo-reply, destination-unreachable, time-exceeded, parameter-problem }} accept
    icmpv6 type {{ echo-reply, destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} accept
  }}
  chain to_the_host {{
    jump answers
    {host_ports}
    reject with icmpx admin-prohibited
  }}
  chain elsewhere {{
    ip daddr {{ {METADATA_V4} }} reject with icmpx admin-prohibited
    ip6 daddr {{ {METADATA_V6} }} reject with icmpx admin-prohibited
    ip daddr {v4} goto to_an_app
    ip6 daddr {v6} goto to_an_app
    meta nfproto ipv4 iifname . ip saddr != @own4 drop
    meta nfproto ipv6 iifname . ip6 saddr != @own6 drop
  }}
  chain to_an_app {{
    jump answers
    ip daddr . meta l4proto . th dport @published4 return
    ip6 daddr . meta l4proto . th dport @published6 return
    reject with icmpx admin-prohibited
  }}
  chain asked {{
    meta l4proto udp update @asked4 {{ ip daddr . udp dport . ip saddr . udp sport }}
    meta l4proto udp update @asked6 {{ ip6 daddr . udp dport . ip6 saddr . udp sport }}
  }}

  chain input {{
    type filter hook input priority filter; policy accept;
    iifname @links goto to_the_host
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname @links jump elsewhere
    oifname @links jump asked
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname @links jump asked
  }}
}}
"#
    )
}

/// Adds an app's elements, or deletes them.
pub(super) fn elements(config: &FenceConfig, verb: &str, app: &Fenced) -> String {
    let name = name(config);
    let Addresses { v4, v6 } = app.addresses;
    let link = &app.link;
    let mut text = format!(
        "{verb} element {name} links {{ \"{link}\" }}\n\
         {verb} element {name} own4 {{ \"{link}\" . {v4} }}\n\
         {verb} element {name} own6 {{ \"{link}\" . {v6} }}\n"
    );
    for Port { number, proto } in &app.ports {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{verb} element {name} published4 {{ {v4} . {proto} . {number} }}"
        );
        let _ = writeln!(
            text,
            "{verb} element {name} published6 {{ {v6} . {proto} . {number} }}"
        );
    }
    text
}
