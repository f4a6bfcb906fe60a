//! What is answered to whole messages, without sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_server::proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::{DNSClass, Name, RecordType};
use proptest::prelude::*;

use super::respond::{self, Reply, Transport};
use super::zone::Zone;
use super::{DnsConfig, Named, Names, Soon};

/// `web-ann` sleeps and publishes 80/tcp, 443/tcp and 53/udp; `new-ann` has no addresses yet; `big-ann` publishes
/// more ports than a datagram holds.
struct Three;

impl Names for Three {
    fn find(&self, label: &str) -> Option<Named> {
        let app = |ports: &[&str], soon| Named {
            app: label.into(),
            v4: Some([10, 77, 0, 2].into()),
            v6: Some("fd77::2".parse().unwrap()),
            ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
            soon,
        };
        match label {
            "web-ann" => Some(app(&["80/tcp", "443/tcp", "53/udp"], Some(Soon::Prefetch))),
            "new-ann" => Some(Named {
                v4: None,
                v6: None,
                ..app(&[], None)
            }),
            "big-ann" => {
                let ports: Vec<String> = (1..=64).map(|number| format!("{number}/tcp")).collect();
                Some(app(&ports.iter().map(String::as_str).collect::<Vec<_>>(), None))
            }
            _ => None,
        }
    }

    fn serial(&self) -> u32 {
        42
    }

    fn soon(&self, _: &str, _: bool) {}
}

fn zone() -> Zone {
    let config = DnsConfig {
        addresses: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
        issuers: vec!["ca.example".to_owned()],
        ..DnsConfig::of_zone("pico.example")
    };
    Zone::new(&config).unwrap()
}

fn client() -> SocketAddr {
    "192.0.2.1:4000".parse().unwrap()
}

fn send(message: &[u8], transport: Transport) -> Option<Reply> {
    respond::reply(&zone(), &Three, message, client(), transport)
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask_with(message: &Message, transport: Transport) -> (Message, Reply) {
    let reply = send(&message.to_vec().unwrap(), transport).unwrap();
    (Message::from_vec(&reply.bytes).unwrap(), reply)
}

fn ask(name: &str, kind: RecordType) -> (Message, Reply) {
    ask_with(&question(name, kind), Transport::Udp)
}

/// Code, records of the answer as text, and whether a SOA stands beside it.
fn facts(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>, bool) {
    let (message, _) = ask(name, kind);
    assert_eq!(message.metadata.id, 7);
    let data = message
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect();
    let soa = message
        .authorities
        .iter()
        .any(|record| record.record_type() == RecordType::SOA);
    (message.metadata.response_code, data, soa)
}

#[test]
fn an_app_has_its_addresses_and_certificate_authorities() {
    let name = "web-ann.pico.example.";
    let ok = ResponseCode::NoError;
    assert_eq!(facts(name, RecordType::A), (ok, vec!["10.77.0.2".into()], false));
    assert_eq!(facts(name, RecordType::AAAA), (ok, vec!["fd77::2".into()], false));
    assert_eq!(
        facts(name, RecordType::CAA),
        (ok, vec!["0 issue \"ca.example\"".into()], false)
    );
    let (message, _) = ask(name, RecordType::A);
    assert!(message.metadata.authoritative && !message.metadata.recursion_available);
    assert_eq!(message.answers[0].ttl, 5);
}

#[test]
fn a_published_port_is_found_by_its_number_and_all_by_their_protocol() {
    let ok = ResponseCode::NoError;
    let srv = |port| format!("0 0 {port} web-ann.pico.example.");
    let of = |name: &str| facts(name, RecordType::SRV);
    assert_eq!(of("_443._tcp.web-ann.pico.example."), (ok, vec![srv(443)], false));
    assert_eq!(
        of("_tcp.web-ann.pico.example."),
        (ok, vec![srv(80), srv(443)], false)
    );
    assert_eq!(of("_udp.web-ann.pico.example."), (ok, vec![srv(53)], false));
    let (message, _) = ask("_80._tcp.web-ann.pico.example.", RecordType::SRV);
    let additional: Vec<RecordType> = message.additionals.iter().map(|r| r.record_type()).collect();
    assert_eq!(additional, [RecordType::A, RecordType::AAAA]);
}

#[test]
fn the_zone_itself_is_described() {
    let ok = ResponseCode::NoError;
    let soa = "ns.pico.example. hostmaster.pico.example. 42 3600 600 1209600 5";
    assert_eq!(
        facts("pico.example.", RecordType::SOA),
        (ok, vec![soa.into()], false)
    );
    assert_eq!(
        facts("pico.example.", RecordType::NS),
        (ok, vec!["ns.pico.example.".into()], false)
    );
    assert_eq!(
        facts("ns.pico.example.", RecordType::AAAA),
        (ok, vec!["2001:db8::53".into()], false)
    );
}

#[test]
fn what_is_there_without_such_data_is_told_from_what_is_not_there() {
    for (name, kind) in [
        ("pico.example.", RecordType::A),
        ("ns.pico.example.", RecordType::TXT),
        ("web-ann.pico.example.", RecordType::MX),
        ("web-ann.pico.example.", RecordType::SRV),
        ("_tcp.web-ann.pico.example.", RecordType::A),
        ("_80._tcp.web-ann.pico.example.", RecordType::A),
        ("new-ann.pico.example.", RecordType::A),
    ] {
        assert_eq!(
            facts(name, kind),
            (ResponseCode::NoError, vec![], true),
            "{name} {kind}"
        );
    }
    for name in [
        "none-ann.pico.example.",
        "web.pico.example.",
        "a.web-ann.pico.example.",
        "a.ns.pico.example.",
        "_81._tcp.web-ann.pico.example.",
        "_080._tcp.web-ann.pico.example.",
        "_53._tcp.web-ann.pico.example.",
        "a._80._tcp.web-ann.pico.example.",
        "_tcp.new-ann.pico.example.",
        "_sctp.web-ann.pico.example.",
        "web-ann.web-ann.pico.example.",
        "*.pico.example.",
    ] {
        for kind in [RecordType::A, RecordType::SRV] {
            assert_eq!(
                facts(name, kind),
                (ResponseCode::NXDomain, vec![], true),
                "{name} {kind}"
            );
        }
    }
    let (message, _) = ask("none-ann.pico.example.", RecordType::A);
    assert_eq!(
        message.authorities[0].ttl, 5,
        "resolvers forget soon that an app was not there (RFC 2308)"
    );
}

#[test]
fn other_zones_transfers_and_any_are_refused() {
    for (name, kind) in [
        ("example.", RecordType::SOA),
        (".", RecordType::NS),
        ("pico.example.org.", RecordType::A),
        ("notpico.example.", RecordType::A),
        ("web-ann.pico.example.", RecordType::ANY),
        ("pico.example.", RecordType::AXFR),
    ] {
        assert_eq!(
            facts(name, kind),
            (ResponseCode::Refused, vec![], false),
            "{name} {kind}"
        );
    }
    let mut chaos = question("web-ann.pico.example.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let (message, _) = ask_with(&chaos, Transport::Udp);
    assert_eq!(message.metadata.response_code, ResponseCode::Refused);
    assert!(!message.metadata.authoritative);
}

#[test]
fn letters_come_back_in_the_case_they_were_asked_in() {
    let (message, reply) = ask("wEb-aNN.PicO.eXamplE.", RecordType::A);
    assert_eq!(message.queries[0].name().to_string(), "wEb-aNN.PicO.eXamplE.");
    assert_eq!(message.answers[0].name.to_string(), "wEb-aNN.PicO.eXamplE.");
    assert_eq!(reply.soon, Some((Arc::from("web-ann"), Soon::Prefetch)));
}

#[test]
fn an_agent_is_told_by_questions_that_a_client_asks_before_it_comes() {
    let told = |name: &str, kind| ask(name, kind).1.soon.is_some();
    assert!(told("web-ann.pico.example.", RecordType::A));
    assert!(told("web-ann.pico.example.", RecordType::AAAA));
    assert!(told("_80._tcp.web-ann.pico.example.", RecordType::SRV));
    assert!(!told("web-ann.pico.example.", RecordType::CAA));
    assert!(!told("web-ann.pico.example.", RecordType::ANY));
    assert!(!told("_81._tcp.web-ann.pico.example.", RecordType::SRV));
    assert!(!told("new-ann.pico.example.", RecordType::A));
    assert!(!told("pico.example.", RecordType::A));
}

#[test]
fn edns_is_answered_where_it_was_asked_and_only_version_0() {
    let mut message = question("web-ann.pico.example.", RecordType::A);
    assert!(ask_with(&message, Transport::Udp).0.edns.is_none());
    let mut edns = Edns::new();
    edns.set_max_payload(4_096).set_dnssec_ok(true);
    message.set_edns(edns.clone());
    let answer = ask_with(&message, Transport::Udp).0;
    let told = answer.edns.as_ref().unwrap();
    assert_eq!((told.max_payload(), told.version()), (1_232, 0));
    assert!(told.flags().dnssec_ok);
    edns.set_version(1);
    message.set_edns(edns);
    let answer = ask_with(&message, Transport::Udp).0;
    assert_eq!(u16::from(answer.metadata.response_code), 16, "BADVERS");
    assert!(answer.answers.is_empty() && answer.edns.is_some());
}

#[test]
fn what_does_not_fit_is_cut_to_nothing_and_comes_whole_by_tcp() {
    let mut message = question("_tcp.big-ann.pico.example.", RecordType::SRV);
    for payload in [None, Some(100), Some(512), Some(65_535)] {
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        let (answer, reply) = ask_with(&message, Transport::Udp);
        assert!(
            answer.metadata.truncation && answer.answers.is_empty(),
            "{payload:?}"
        );
        assert!(reply.bytes.len() <= 512);
        let (answer, _) = ask_with(&message, Transport::Tcp);
        assert_eq!((answer.metadata.truncation, answer.answers.len()), (false, 64));
    }
}

#[test]
fn only_queries_are_answered() {
    let good = question("web-ann.pico.example.", RecordType::A).to_vec().unwrap();
    let mut reply = good.clone();
    reply[2] |= 0x80;
    assert!(
        send(&reply, Transport::Udp).is_none(),
        "two servers must not answer each other"
    );
    assert!(send(&good[..11], Transport::Udp).is_none());
    let mut update = good.clone();
    update[2] |= u8::from(OpCode::Update) << 3;
    let answer = send(&update, Transport::Udp).unwrap();
    assert_eq!((answer.code, answer.bytes[3] & 0xf), (ResponseCode::NotImp, 4));
    for (at, count) in [(5, 0), (5, 2), (7, 1), (11, 200)] {
        let mut wrong = good.clone();
        wrong[at] = count;
        let answer = send(&wrong, Transport::Udp).unwrap();
        assert_eq!((answer.code, answer.bytes[3] & 0xf), (ResponseCode::FormErr, 1));
        assert_eq!(answer.bytes[..2], good[..2], "the id is the question's");
    }
    let answer = send(&good[..20], Transport::Udp).unwrap();
    assert_eq!(answer.code, ResponseCode::FormErr);
}

proptest! {
    #[test]
    fn any_bytes_are_answered_by_less_than_a_datagram_or_not_at_all(
        bytes in proptest::collection::vec(any::<u8>(), 0..600)
    ) {
        check(&bytes)?;
    }

    #[test]
    fn a_damaged_question_is_answered_by_less_than_a_datagram_or_not_at_all(
        damage in proptest::collection::vec((0_usize..70, any::<u8>()), 1..6),
        length in 0_usize..70,
        tail in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut message = question("_80._tcp.web-ann.pico.example.", RecordType::SRV);
        message.set_edns(Edns::new());
        let mut bytes = message.to_vec().unwrap();
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(length);
        bytes.extend(tail);
        check(&bytes)?;
    }

    #[test]
    fn whatever_name_is_asked_for_is_answered_as_nobody_but_the_zone_would(
        labels in proptest::collection::vec("[a-z0-9_]([a-z0-9_-]{0,10}[a-z0-9_])?", 0..5),
    ) {
        let name: String = labels.iter().map(|label| format!("{label}.")).collect();
        let (message, _) = ask(&format!("{name}pico.example."), RecordType::A);
        prop_assert!(matches!(
            message.metadata.response_code,
            ResponseCode::NoError | ResponseCode::NXDomain
        ));
        prop_assert!(message.metadata.authoritative);
        prop_assert_eq!(message.answers.is_empty(), !message.authorities.is_empty());
    }
}

fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    for transport in [Transport::Udp, Transport::Tcp] {
        let Some(reply) = send(bytes, transport) else {
            continue;
        };
        prop_assert_eq!(&reply.bytes[..2], &bytes[..2]);
        prop_assert!(reply.bytes[2] & 0x80 != 0);
        if transport == Transport::Udp {
            prop_assert!(reply.bytes.len() <= 1_232);
        }
        prop_assert!(Message::from_vec(&reply.bytes).is_ok());
    }
    if let Some(reply) = respond::truncated(bytes, client()) {
        prop_assert!(
            reply.bytes.len() <= bytes.len().max(12) + 11,
            "nobody is sent more than was asked"
        );
    }
    Ok(())
}
