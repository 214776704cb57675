//! Tests of the module beside this file.
#![allow(clippy::unwrap_used, reason = "tests")]

use hickory_proto::{op::OpCode, rr::rdata::opt::EdnsCode};
use proptest::prelude::*;

use super::*;
use crate::dns::{DnsConfig, EdgeView, RegionCidr};

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9));

fn view() -> DnsView {
    let edge = |name: &str, region: &str, addrs: &[&str]| EdgeView {
        name: name.to_owned(),
        region: region.to_owned(),
        addrs: addrs.iter().map(|addr| addr.parse().unwrap()).collect(),
        https_port: 443,
        ready: true,
        weight: 1,
    };
    DnsView {
        ready: true,
        edges: vec![
            edge("eu-1", "eu", &["192.0.2.1", "2001:db8::1"]),
            edge("eu-2", "eu", &["192.0.2.2"]),
            edge("us-1", "us", &["192.0.2.3"]),
        ],
        sites: ["docs".to_owned()].into(),
        domains: [("www.deep.atoll.test".to_owned(), "docs".to_owned())].into(),
        serial: 7,
    }
}

fn answerer(view: DnsView) -> Answerer {
    let config = DnsConfig {
        regions: vec![RegionCidr { cidr: "10.0.0.0/8".parse().unwrap(), region: "eu".to_owned() }],
        ns_addrs: ["192.0.2.53", "2001:db8::53"].map(|addr| addr.parse().unwrap()).into(),
        ..DnsConfig::default()
    };
    let zone = Zone::new(&config, config.listen).unwrap();
    let routes = RouteTable::new(&config.regions, &config.region_order);
    Answerer::new(Arc::new(zone), Arc::new(routes), Arc::new(view))
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, payload: u16, option: Option<&[u8]>) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_dnssec_ok(true);
    if let Some(option) = option {
        let option = EdnsOption::Unknown(OPTION_CLIENT_SUBNET, option.to_vec());
        edns.options_mut().insert(option);
    }
    message.edns = Some(edns);
    message
}

fn ask(answerer: &Answerer, query: &Message) -> Message {
    let packet = query.to_vec().unwrap();
    let answer = answerer.answer(&packet, FROM, Transport::Udp).unwrap();
    let reply = Message::from_vec(&answer.packet).unwrap();
    assert_eq!(reply.metadata.id, query.metadata.id);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert!(!reply.metadata.recursion_available);
    reply
}

fn data(records: &[Record]) -> Vec<String> {
    let mut data: Vec<String> = records.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    data
}

#[test]
fn each_name_and_type_has_its_code_and_sections() {
    use ResponseCode::{NXDomain, NoError, Refused};
    let answerer = answerer(view());
    // Name, type, code, answers, authorities.
    for (name, kind, code, answers, authorities) in [
        ("docs.atoll.test.", RecordType::A, NoError, 3, 0),
        ("docs.atoll.test.", RecordType::AAAA, NoError, 1, 0),
        ("docs.atoll.test.", RecordType::HTTPS, NoError, 1, 0),
        ("next--docs.atoll.test.", RecordType::A, NoError, 3, 0),
        ("www.deep.atoll.test.", RecordType::A, NoError, 3, 0),
        ("docs.atoll.test.", RecordType::CAA, NoError, 0, 1),
        ("docs.atoll.test.", RecordType::TXT, NoError, 0, 1),
        ("docs.atoll.test.", RecordType::SOA, NoError, 0, 1),
        ("docs.atoll.test.", RecordType::Unknown(6666), NoError, 0, 1),
        ("docs.atoll.test.", RecordType::ANY, NoError, 1, 0),
        ("deep.atoll.test.", RecordType::A, NoError, 0, 1),
        ("deep.atoll.test.", RecordType::ANY, NoError, 0, 1),
        ("atoll.test.", RecordType::A, NoError, 3, 0),
        ("atoll.test.", RecordType::SOA, NoError, 1, 0),
        ("atoll.test.", RecordType::NS, NoError, 1, 0),
        ("atoll.test.", RecordType::MX, NoError, 0, 1),
        ("ns1.atoll.test.", RecordType::A, NoError, 1, 0),
        ("ns1.atoll.test.", RecordType::AAAA, NoError, 1, 0),
        ("ns1.atoll.test.", RecordType::HTTPS, NoError, 0, 1),
        ("ns2.atoll.test.", RecordType::A, NXDomain, 0, 1),
        ("nope.atoll.test.", RecordType::A, NXDomain, 0, 1),
        ("nope.atoll.test.", RecordType::ANY, NXDomain, 0, 1),
        ("a.docs.atoll.test.", RecordType::A, NXDomain, 0, 1),
        ("example.org.", RecordType::A, Refused, 0, 0),
        (".", RecordType::NS, Refused, 0, 0),
        ("atoll.test.", RecordType::AXFR, Refused, 0, 0),
        ("atoll.test.", RecordType::IXFR, Refused, 0, 0),
        ("atoll.test.", RecordType::OPT, ResponseCode::FormErr, 0, 0),
        ("atoll.test.", RecordType::Unknown(249), ResponseCode::NotImp, 0, 0),
    ] {
        let reply = ask(&answerer, &query(name, kind));
        assert_eq!(reply.metadata.response_code, code, "{name} {kind}");
        assert_eq!(reply.answers.len(), answers, "{name} {kind}");
        assert_eq!(reply.authorities.len(), authorities, "{name} {kind}");
        assert!(reply.authorities.iter().all(|soa| soa.record_type() == RecordType::SOA));
        let known = matches!(code, NoError | NXDomain);
        assert_eq!(reply.metadata.authoritative, known, "{name} {kind}");
        assert!(reply.metadata.recursion_desired);
        assert_eq!(reply.edns, None);
        assert_eq!(reply.queries, query(name, kind).queries);
    }
}

#[test]
fn the_records_say_the_right_things() {
    let answerer = answerer(view());
    let a = ask(&answerer, &query("DoCs.atoll.TEST.", RecordType::A));
    assert_eq!(data(&a.answers), ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    assert!(a.answers.iter().all(|record| record.ttl == 30));
    assert_eq!(a.answers[0].name.to_ascii(), "DoCs.atoll.TEST.", "case is the asker's");
    let soa = ask(&answerer, &query("atoll.test.", RecordType::SOA));
    let expected = "ns1.atoll.test. hostmaster.atoll.test. 7 7200 900 1209600 30";
    assert_eq!(data(&soa.answers), [expected]);
    let ns = ask(&answerer, &query("atoll.test.", RecordType::NS));
    assert_eq!(data(&ns.answers), ["ns1.atoll.test."]);
    assert_eq!(data(&ns.additionals), ["192.0.2.53", "2001:db8::53"]);
    let any = ask(&answerer, &query("docs.atoll.test.", RecordType::ANY));
    assert_eq!(any.answers[0].record_type(), RecordType::HINFO);
}

#[test]
fn a_dead_edge_leaves_and_halves_the_ttl() {
    let mut view = view();
    view.edges[0].ready = false;
    let answerer = answerer(view);
    let a = ask(&answerer, &query("docs.atoll.test.", RecordType::A));
    assert_eq!(data(&a.answers), ["192.0.2.2", "192.0.2.3"]);
    assert!(a.answers.iter().all(|record| record.ttl == 15));
    let aaaa = ask(&answerer, &query("docs.atoll.test.", RecordType::AAAA));
    assert_eq!((aaaa.answers.len(), aaaa.authorities[0].ttl), (0, 15));
}

#[test]
fn what_is_not_known_yet_is_not_denied() {
    let unread = answerer(DnsView { ready: false, ..view() });
    let empty = answerer(DnsView { edges: Vec::new(), ..view() });
    for (answerer, name, kind, code) in [
        (&unread, "docs.atoll.test.", RecordType::A, ResponseCode::ServFail),
        (&unread, "nope.atoll.test.", RecordType::A, ResponseCode::ServFail),
        (&unread, "atoll.test.", RecordType::SOA, ResponseCode::ServFail),
        (&unread, "example.org.", RecordType::A, ResponseCode::Refused),
        (&empty, "docs.atoll.test.", RecordType::HTTPS, ResponseCode::ServFail),
        (&empty, "docs.atoll.test.", RecordType::TXT, ResponseCode::NoError),
        (&empty, "atoll.test.", RecordType::SOA, ResponseCode::NoError),
    ] {
        let reply = ask(answerer, &query(name, kind));
        assert_eq!(reply.metadata.response_code, code, "{name} {kind}");
    }
}

/// Takes the hints and the port out of an HTTPS record.
fn https_of(record: &Record) -> (Option<u16>, Vec<IpAddr>) {
    let RData::HTTPS(HTTPS(svcb)) = &record.data else { panic!("not HTTPS: {record}") };
    assert_eq!((svcb.svc_priority, svcb.target_name.is_root()), (1, true));
    let (mut port, mut hints) = (None, Vec::new());
    for (_, value) in &svcb.svc_params {
        match value {
            SvcParamValue::Alpn(alpn) => assert_eq!(alpn.0, ["h3", "h2"]),
            SvcParamValue::Port(number) => port = Some(*number),
            SvcParamValue::Ipv4Hint(v4) => hints.extend(v4.0.iter().map(|a| IpAddr::V4(a.0))),
            SvcParamValue::Ipv6Hint(v6) => hints.extend(v6.0.iter().map(|a| IpAddr::V6(a.0))),
            other => panic!("{other}"),
        }
    }
    (port, hints)
}

fn addrs_of(records: &[Record]) -> Vec<IpAddr> {
    records.iter().filter_map(|record| record.data.ip_addr()).collect()
}

#[test]
fn https_hints_equal_the_address_answers() {
    let answerer = answerer(view());
    let https = ask(&answerer, &query("docs.atoll.test.", RecordType::HTTPS));
    let (port, hints) = https_of(&https.answers[0]);
    let mut addrs = addrs_of(&ask(&answerer, &query("docs.atoll.test.", RecordType::A)).answers);
    let v6 = ask(&answerer, &query("docs.atoll.test.", RecordType::AAAA));
    addrs.extend(addrs_of(&v6.answers));
    assert_eq!((port, hints), (None, addrs));
}

#[test]
fn edges_behind_one_address_have_a_record_for_each_port() {
    let mut view = view();
    for (edge, port) in view.edges.iter_mut().zip([1001, 1002, 1003]) {
        edge.addrs = vec!["127.0.0.1".parse().unwrap()];
        edge.https_port = port;
    }
    let answerer = answerer(view);
    let a = ask(&answerer, &query("docs.atoll.test.", RecordType::A));
    assert_eq!(data(&a.answers), ["127.0.0.1"]);
    let https = ask(&answerer, &query("docs.atoll.test.", RecordType::HTTPS));
    let mut ports = Vec::new();
    for record in &https.answers {
        let (port, hints) = https_of(record);
        assert_eq!(hints, addrs_of(&a.answers));
        ports.extend(port);
    }
    ports.sort();
    assert_eq!(ports, [1001, 1002, 1003]);
}

#[test]
fn edns_is_repeated_with_our_size_and_the_scope() {
    let answerer = answerer(view());
    for (name, kind, told, scope) in [
        ("docs.atoll.test.", RecordType::A, &[0, 1, 24, 0, 10, 1, 2][..], 8),
        ("docs.atoll.test.", RecordType::HTTPS, &[0, 1, 24, 0, 10, 1, 2], 8),
        ("docs.atoll.test.", RecordType::A, &[0, 2, 56, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 0], 0),
        ("docs.atoll.test.", RecordType::A, &[0, 1, 0, 0], 0),
        ("docs.atoll.test.", RecordType::A, &[0, 0, 0, 0], 0),
        ("atoll.test.", RecordType::SOA, &[0, 1, 24, 0, 10, 1, 2], 0),
        ("nope.atoll.test.", RecordType::A, &[0, 1, 24, 0, 10, 1, 2], 0),
    ] {
        let mut query = with_edns(query(name, kind), 4096, Some(told));
        let packet = query.to_vec().unwrap();
        let answer = answerer.answer(&packet, FROM, Transport::Udp).unwrap();
        let mut expected = told.to_vec();
        expected[SCOPE_AT] = scope;
        let option = [&[0, 8, 0, u8::try_from(told.len()).unwrap()], &expected[..]].concat();
        assert!(answer.packet.ends_with(&option), "{name} {kind} {told:?}");
        // Without the option the rest can be read back by hickory, which refuses family 0.
        query.edns.as_mut().unwrap().options_mut().remove(EdnsCode::Subnet);
        let edns = ask(&answerer, &query).edns.unwrap();
        assert_eq!((edns.max_payload(), edns.version()), (1232, 0));
        assert!(edns.flags().dnssec_ok);
    }
}

#[test]
fn what_cannot_be_answered_gets_its_code() {
    let answerer = answerer(view());
    let plain = query("docs.atoll.test.", RecordType::A);
    let mut chaos = plain.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(ask(&answerer, &chaos).metadata.response_code, ResponseCode::Refused);
    let mut notify = plain.clone();
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(ask(&answerer, &notify).metadata.response_code, ResponseCode::NotImp);
    let mut two = plain.clone();
    two.queries.push(two.queries[0].clone());
    assert_eq!(ask(&answerer, &two).metadata.response_code, ResponseCode::FormErr);
    let mut newer = with_edns(plain.clone(), 4096, None);
    newer.edns.as_mut().unwrap().set_version(1);
    let reply = ask(&answerer, &newer);
    // BADVERS and BADSIG share the number 16, and hickory reads it as the latter.
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert_eq!(reply.edns.unwrap().version(), 0);
    assert!(reply.answers.is_empty());
    let mut response = plain;
    response.metadata.message_type = MessageType::Response;
    let packet = response.to_vec().unwrap();
    assert_eq!(answerer.answer(&packet, FROM, Transport::Udp), None);
}

#[test]
fn long_replies_are_cut_over_udp_only() {
    let mut view = view();
    for (index, edge) in view.edges.iter_mut().enumerate() {
        let addr = |last| IpAddr::from([192, 0, u8::try_from(index).unwrap(), last]);
        edge.addrs = (1..=20).map(addr).collect();
    }
    let answerer = answerer(view);
    let plain = query("docs.atoll.test.", RecordType::A);
    let cut = ask(&answerer, &plain);
    assert!(cut.metadata.truncation && cut.metadata.authoritative && cut.answers.is_empty());
    assert_eq!(cut.queries, plain.queries);
    let whole = ask(&answerer, &with_edns(plain.clone(), 1232, None));
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 32));
    // Payload sizes below 512 mean 512 (RFC 6891 section 6.2.3).
    assert!(ask(&answerer, &with_edns(plain.clone(), 512, None)).metadata.truncation);
    let packet = plain.to_vec().unwrap();
    let tcp = answerer.answer(&packet, FROM, Transport::Tcp).unwrap();
    assert_eq!(Message::from_vec(&tcp.packet).unwrap().answers.len(), 32);
}

proptest! {
    #[test]
    fn no_packet_panics_and_every_reply_is_sound(
        packet in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..600),
            // A good query with a few bytes changed, cut somewhere.
            (prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
             any::<prop::sample::Index>(), any::<bool>()).prop_map(|(changes, end, cut)| {
                let query = query("next--docs.atoll.test.", RecordType::HTTPS);
                let option: &[u8] = &[0, 1, 24, 0, 10, 1, 2];
                let mut packet = with_edns(query, 4096, Some(option)).to_vec().unwrap();
                for (at, byte) in changes {
                    let at = at.index(packet.len());
                    packet[at] = byte;
                }
                if cut {
                    packet.truncate(end.index(packet.len()));
                }
                packet
            }),
        ],
    ) {
        let answerer = answerer(view());
        for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65535)] {
            let Some(answer) = answerer.answer(&packet, FROM, transport) else {
                // Only these are silent: too short, or itself a reply.
                prop_assert!(packet.len() < 4 || packet[2] & 0x80 != 0);
                continue;
            };
            prop_assert!(answer.packet.len() <= limit);
            prop_assert_eq!(&answer.packet[..2], &packet[..2]);
            prop_assert!(answer.packet[2] & 0x80 != 0);
        }
    }
}
