//! A published port: a number and a protocol, written `80/tcp`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
}

impl Proto {
    /// The IP protocol number (IANA: 6 for TCP, 17 for UDP).
    pub fn number(self) -> u8 {
        match self {
            Proto::Tcp => 6,
            Proto::Udp => 17,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        })
    }
}

/// A port an app publishes on its service address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Port {
    /// Port number, never 0.
    pub number: u16,
    /// Transport protocol.
    pub proto: Proto,
}

/// Why a text is not a [`Port`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a port; write it as 80/tcp or 53/udp")]
pub struct PortError(String);

impl FromStr for Port {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || PortError(text.to_owned());
        let (number, proto) = text.split_once('/').ok_or_else(error)?;
        let proto = match proto {
            "tcp" => Proto::Tcp,
            "udp" => Proto::Udp,
            _ => return Err(error()),
        };
        match number.parse::<u16>() {
            Ok(number) if number != 0 => Ok(Port { number, proto }),
            _ => Err(error()),
        }
    }
}

impl TryFrom<String> for Port {
    type Error = PortError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Port> for String {
    fn from(port: Port) -> Self {
        port.to_string()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.proto)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_prints_as_it_is_written() {
        for text in ["80/tcp", "53/udp", "65535/tcp"] {
            assert_eq!(text.parse::<Port>().map(|p| p.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "",
            "80",
            "80/sctp",
            "0/tcp",
            "65536/tcp",
            "-1/udp",
            "http/tcp",
            "80/tcp/udp",
        ] {
            assert!(text.parse::<Port>().is_err(), "{text}");
        }
    }
}
