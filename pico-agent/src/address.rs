//! The service addresses of an app: known to the gate, which holds what is sent there, and to the sandbox, whose
//! network namespace has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One address of each family, the app's for as long as it is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Addresses {
    /// In the IPv4 service subnet.
    pub v4: Ipv4Addr,
    /// In the IPv6 service subnet.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// As a pair to go through.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}
