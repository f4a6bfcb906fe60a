//! Who may wake an app, and how often: how it is written. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::units::{format_duration, parse_duration};

/// Why a value cannot be read. Messages say how it is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WakeError {
    /// No subnet, no address.
    #[error("'{0}' is no subnet; write it as 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7")]
    Source(String),
    /// No rate.
    #[error("'{0}' is no rate; write it as 6/1m: so many times in so long")]
    Rate(String),
}

/// Where packets come from: a subnet, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Source(pub IpNet);

impl FromStr for Source {
    type Err = WakeError;

    fn from_str(text: &str) -> Result<Self, WakeError> {
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(|net: IpNet| Source(net.trunc()))
            .map_err(|_| WakeError::Source(text.to_owned()))
    }
}

/// So many times in so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WakeRate {
    /// How many times, at least 1.
    pub times: u32,
    /// In how long, more than nothing.
    pub per: Duration,
}

impl FromStr for WakeRate {
    type Err = WakeError;

    fn from_str(text: &str) -> Result<Self, WakeError> {
        let error = || WakeError::Rate(text.to_owned());
        let (times, per) = text.split_once('/').ok_or_else(error)?;
        let times = times.trim().parse().map_err(|_| error())?;
        let per = parse_duration(per.trim()).map_err(|_| error())?;
        if times == 0 || per.is_zero() {
            return Err(error());
        }
        Ok(WakeRate { times, per })
    }
}

impl fmt::Display for WakeRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.times, format_duration(self.per))
    }
}

macro_rules! as_text {
    ($($name:ty: $text:expr),*) => {$(
        impl TryFrom<String> for $name {
            type Error = WakeError;

            fn try_from(text: String) -> Result<Self, WakeError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                let text: fn($name) -> String = $text;
                text(value)
            }
        }
    )*};
}

as_text! {
    Source: |source| source.0.to_string(),
    WakeRate: |rate| rate.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_subnets_or_addresses() {
        let read = |text: &str| text.parse::<Source>().map(String::from);
        assert_eq!(read("192.0.2.0/24"), Ok("192.0.2.0/24".into()));
        assert_eq!(read("192.0.2.7"), Ok("192.0.2.7/32".into()));
        assert_eq!(read("2001:db8::7"), Ok("2001:db8::7/128".into()));
        assert_eq!(read("192.0.2.7/24"), Ok("192.0.2.0/24".into()));
        assert!(read("nobody").is_err() && read("192.0.2.0/33").is_err());
    }

    #[test]
    fn rates_are_counts_in_a_time() {
        let read = |text: &str| text.parse::<WakeRate>().map(String::from);
        assert_eq!(read("6/1m"), Ok("6/1m".into()));
        for wrong in ["6", "0/1m", "6/0s", "x/1m", "6/"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
