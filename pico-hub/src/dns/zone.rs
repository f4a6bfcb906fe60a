//! What exists in the zone, and what is said of it. Knows no message and no socket.
//!
//! | name | types |
//! |---|---|
//! | the zone itself | SOA, NS, CAA |
//! | its own name servers | A, AAAA |
//! | `NAME-OWNER` | A, AAAA, CAA |
//! | `_PORT._tcp.NAME-OWNER`, `_PORT._udp.NAME-OWNER` | SRV: that port, where the app publishes it |
//! | `_tcp.NAME-OWNER`, `_udp.NAME-OWNER` | SRV: all ports of that protocol that it publishes |
//!
//! A name above an existing one exists too, without data (RFC 8020, RFC 4592): NODATA. All others: NXDOMAIN.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::rdata::{A, AAAA, CAA, NS, SOA, SRV};
use hickory_server::proto::rr::{LowerName, Name, RData, Record, RecordType};
use pico_proto::port::{Port, Proto};

use super::{DnsConfig, Named, Names, Soon};

/// Of what changes only with the configuration, in seconds.
const FIXED_TTL: u32 = 3_600;
/// For secondaries, of which there are none: RFC 1912 section 2.2 has the customary values. In seconds.
const REFRESH: i32 = 3_600;
const RETRY: i32 = 600;
const EXPIRE: i32 = 1_209_600;

/// The zone, as configured.
#[derive(Debug)]
pub(super) struct Zone {
    apex: LowerName,
    nameservers: Vec<LowerName>,
    addresses: Vec<IpAddr>,
    contact: Name,
    issuers: Vec<Name>,
    /// Of what is said of apps, and of what is not there. In seconds.
    ttl: u32,
}

/// What is said of a name.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) code: ResponseCode,
    /// False for what lies outside of the zone.
    pub(super) authoritative: bool,
    pub(super) answers: Vec<Record>,
    /// With NXDOMAIN and NODATA.
    pub(super) soa: Option<Record>,
    /// What a client would ask next; may be left out.
    pub(super) additionals: Vec<Record>,
    /// The app whose agent is to be told.
    pub(super) soon: Option<(Arc<str>, Soon)>,
}

impl Found {
    fn refused() -> Self {
        Found {
            code: ResponseCode::Refused,
            authoritative: false,
            answers: Vec::new(),
            soa: None,
            additionals: Vec::new(),
            soon: None,
        }
    }

    fn answers(answers: Vec<Record>) -> Self {
        Found {
            code: ResponseCode::NoError,
            authoritative: true,
            answers,
            ..Found::refused()
        }
    }
}

impl Zone {
    /// # Errors
    /// All that is wrong with the configuration.
    pub(super) fn new(config: &DnsConfig) -> Result<Zone, Vec<String>> {
        let checked = config.checked()?;
        Ok(Zone {
            apex: LowerName::new(&checked.apex),
            nameservers: checked.nameservers.iter().map(LowerName::new).collect(),
            addresses: config.addresses.clone(),
            contact: checked.contact,
            issuers: checked.issuers,
            ttl: checked.ttl,
        })
    }

    /// What is said of `name`, which was asked as `asked` (its letters in any case: RFC 4343, and answered so).
    pub(super) fn find(&self, name: &LowerName, asked: &Name, kind: RecordType, names: &dyn Names) -> Found {
        // Transfers are for secondaries, of which there are none. ANY is refused as a whole: what is behind it is
        // asked for by type, and nobody can use it to send much to someone else (RFC 8482).
        let meta = matches!(kind, RecordType::ANY | RecordType::AXFR | RecordType::IXFR);
        if meta || !self.apex.zone_of(name) {
            return Found::refused();
        }
        let depth = name.iter().len() - self.apex.iter().len();
        let mut labels = name.iter().take(depth).rev();
        let found = match labels.next() {
            None => Some(self.apex(asked, kind, names)),
            Some(label) if label.contains(&b'-') => std::str::from_utf8(label)
                .ok()
                .and_then(|label| names.find(label))
                .and_then(|app| self.app(&app, name, asked, labels.collect(), kind)),
            Some(_) => self.nameserver(name, asked, kind),
        };
        let mut found = found.unwrap_or_else(|| Found {
            code: ResponseCode::NXDomain,
            ..Found::answers(Vec::new())
        });
        if found.answers.is_empty() {
            // RFC 2308 section 3: its TTL is how long the answer "not there" is kept.
            found.soa = Some(self.soa(self.apex.clone().into(), self.ttl, names));
        }
        found
    }

    fn apex(&self, asked: &Name, kind: RecordType, names: &dyn Names) -> Found {
        match kind {
            RecordType::SOA => Found::answers(vec![self.soa(asked.clone(), FIXED_TTL, names)]),
            RecordType::NS => {
                let record = |server: &LowerName| {
                    Record::from_rdata(asked.clone(), FIXED_TTL, RData::NS(NS(server.clone().into())))
                };
                let inside = self.nameservers.iter().filter(|server| self.apex.zone_of(server));
                let glue = inside.flat_map(|server| self.addresses_of(&Name::from(server.clone())));
                Found {
                    additionals: glue.collect(),
                    ..Found::answers(self.nameservers.iter().map(record).collect())
                }
            }
            RecordType::CAA => Found::answers(self.caa(asked, FIXED_TTL)),
            _ => Found::answers(Vec::new()),
        }
    }

    fn nameserver(&self, name: &LowerName, asked: &Name, kind: RecordType) -> Option<Found> {
        if self.nameservers.contains(name) {
            let mut records = self.addresses_of(asked);
            records.retain(|record| record.record_type() == kind);
            return Some(Found::answers(records));
        }
        let above = self.nameservers.iter().any(|server| name.zone_of(server));
        above.then(|| Found::answers(Vec::new()))
    }

    fn addresses_of(&self, server: &Name) -> Vec<Record> {
        let record = |&address: &IpAddr| address_record(server, FIXED_TTL, address);
        self.addresses.iter().map(record).collect()
    }

    /// What is said of an app or of what is below it: `below` are the labels there, nearest first.
    fn app(
        &self,
        app: &Named,
        name: &LowerName,
        asked: &Name,
        below: Vec<&[u8]>,
        kind: RecordType,
    ) -> Option<Found> {
        let mut found = match below.as_slice() {
            [] => Found::answers(match kind {
                RecordType::A => self.address(asked, app.v4),
                RecordType::AAAA => self.address(asked, app.v6),
                RecordType::CAA => self.caa(asked, self.ttl),
                _ => Vec::new(),
            }),
            [proto, rest @ ..] => {
                let proto = protocol(proto)?;
                let number = match rest {
                    [] => None,
                    [number] => Some(number_of(number)?),
                    _ => return None,
                };
                let asked_for = |port: &&Port| port.proto == proto && number.is_none_or(|n| n == port.number);
                let ports: Vec<&Port> = app.ports.iter().filter(asked_for).collect();
                // Nothing is published there, so there is no such name.
                ports.first()?;
                match kind {
                    RecordType::SRV => self.services(app, name, asked, below.len(), &ports),
                    _ => Found::answers(Vec::new()),
                }
            }
        };
        if matches!(kind, RecordType::A | RecordType::AAAA | RecordType::SRV) {
            found.soon = app.soon.map(|soon| (Arc::clone(&app.app), soon));
        }
        Some(found)
    }

    fn services(&self, app: &Named, name: &LowerName, asked: &Name, depth: usize, ports: &[&Port]) -> Found {
        let target = name.trim_to(name.iter().len() - depth);
        let service = |port: &&Port| {
            let data = SRV::new(0, 0, port.number, target.clone());
            Record::from_rdata(asked.clone(), self.ttl, RData::SRV(data))
        };
        Found {
            additionals: [self.address(&target, app.v4), self.address(&target, app.v6)].concat(),
            ..Found::answers(ports.iter().map(service).collect())
        }
    }

    fn address(&self, name: &Name, address: Option<impl Into<IpAddr>>) -> Vec<Record> {
        let record = |address: IpAddr| address_record(name, self.ttl, address);
        address.map(Into::into).map(record).into_iter().collect()
    }

    fn caa(&self, name: &Name, ttl: u32) -> Vec<Record> {
        let record = |issuer: &Name| {
            let mut issuer = issuer.clone();
            // RFC 8659 section 4.2: a domain name as text, without the dot of the root.
            issuer.set_fqdn(false);
            let data = CAA::new_issue(false, Some(issuer), Vec::new());
            Record::from_rdata(name.clone(), ttl, RData::CAA(data))
        };
        self.issuers.iter().map(record).collect()
    }

    fn soa(&self, name: Name, ttl: u32, names: &dyn Names) -> Record {
        let primary = self.nameservers.first().map(|server| Name::from(server.clone()));
        let data = SOA::new(
            primary.unwrap_or_default(),
            self.contact.clone(),
            names.serial(),
            REFRESH,
            RETRY,
            EXPIRE,
            self.ttl,
        );
        Record::from_rdata(name, ttl, RData::SOA(data))
    }
}

fn address_record(name: &Name, ttl: u32, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(name.clone(), ttl, data)
}

fn protocol(label: &[u8]) -> Option<Proto> {
    match label {
        b"_tcp" => Some(Proto::Tcp),
        b"_udp" => Some(Proto::Udp),
        _ => None,
    }
}

/// `_80`, written as a number is: there is one name for each port.
fn number_of(label: &[u8]) -> Option<u16> {
    let digits = label.strip_prefix(b"_")?;
    let number: u16 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == digits).then_some(number)
}
