//! EDNS in `dns_lookup`: what is asked for, and the whole OPT record of the answer; header bits; zone transfers.

use std::sync::Arc;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::dns::{lookup, name_server};
use crate::support::lab::Lab;
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::dns_opt", lab =>
        a_name_server_says_who_it_is,
        every_option_of_the_answer_is_shown,
        the_size_of_an_answer_over_udp_is_chosen,
        a_query_has_the_bits_that_are_asked_for,
        zone_transfers_and_edns_options_without_edns_are_refused,
    )
}

fn a_name_server_says_who_it_is(lab: &Lab) {
    let server = lab.server(&[]);
    let theirs = lab.probe.output("dig", &["+nsid", "+norec", "@10.77.0.2", "www.lab.test"]);
    assert!(theirs.contains("NSID: 6e 73 31 2e 6c 61 62 (\"ns1.lab\")"), "{theirs}");
    let udp = theirs.split("udp: ").nth(1).and_then(|rest| rest.lines().next()).expect("a size");
    for transport in ["udp", "tcp", "tls"] {
        let with =
            lookup(&server, json!({"qname": "www.lab.test", "nsid": true, "transport": transport, "ns": "10.77.0.2"}));
        let edns = &with["edns"];
        assert_eq!(edns["nsid"], json!({"hex": "6e73312e6c6162", "text": "ns1.lab"}), "{with}");
        assert_eq!(
            (&edns["version"], &edns["extended_rcode"], &edns["extended_errors"]),
            (&json!(0), &json!(0), &json!([]))
        );
        if transport == "udp" {
            assert_eq!(edns["udp_payload_size"].to_string(), udp, "{with}");
        }
    }
    let without = lookup(&server, json!({"qname": "www.lab.test"}));
    assert_eq!((&without["edns"]["nsid"], &without["edns"]["dnssec_ok"]), (&Value::Null, &json!(false)), "{without}");
    let dnssec = lookup(&server, json!({"qname": "www.lab.test", "dnssec": true}));
    assert_eq!(dnssec["edns"]["dnssec_ok"], json!(true), "{dnssec}");
    let none = lookup(&server, json!({"qname": "www.lab.test", "edns": false}));
    assert_eq!((&none["edns"], &none["answer"][0]["rdata"]), (&Value::Null, &json!("10.77.0.2")), "{none}");
}

/// Header and question of a query, turned into a response.
fn response(query: &[u8]) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0).expect("the end of the name");
    let mut reply = query[..12 + name + 5].to_vec();
    reply[2] |= 0x80;
    reply[6..12].fill(0);
    reply
}

fn every_option_of_the_answer_is_shown(lab: &Lab) {
    name_server(lab, "10.77.0.30:53", |query| {
        let mut options = vec![];
        for (code, data) in [
            (15, &b"\0\x06the signatures do not fit"[..]),
            (15, &[0, 9]),
            (15, b"\xff\xffprivate"),
            (3, &[0xab, 0xcd]),
            (8, &[0, 2, 48, 40, 0x20, 1, 0xd, 0xb8, 0, 7]),
            (12, &[0; 20]),
            (10, b"01234567server cookie"),
            (11, &[0, 100]),
            // An IPv4 address of 33 bits.
            (8, &[0, 1, 33, 0, 1, 2, 3, 4, 5]),
        ] {
            options.extend(u16::to_be_bytes(code));
            options.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
            options.extend(data);
        }
        // BADVERS is 16: 1 in the OPT record, 0 in the header.
        let mut reply = response(query);
        reply[11] = 1;
        reply.extend([0, 0, 41, 2, 0, 1, 0, 0x80, 0]);
        reply.extend(u16::try_from(options.len()).expect("short").to_be_bytes());
        reply.extend(options);
        vec![reply]
    });
    let server = lab.server(&[]);
    let result = lookup(&server, json!({"qname": "www.lab.test", "ns": "10.77.0.30"}));
    let expected = json!({
        "udp_payload_size": 512,
        "version": 0,
        "extended_rcode": 1,
        "dnssec_ok": true,
        "extended_errors": [
            {"code": 6, "name": "DNSSEC Bogus", "text": "the signatures do not fit"},
            {"code": 9, "name": "DNSKEY Missing", "text": null},
            {"code": 65535, "name": null, "text": "private"},
        ],
        "nsid": {"hex": "abcd", "text": null},
        "client_subnet": {"address": "2001:db8:7::", "source_prefix_length": 48, "scope_prefix_length": 40},
        "padding": 20,
        "cookie": {"client": "3031323334353637", "server": "73657276657220636f6f6b6965"},
        "options": [{"code": 11, "data": "0064"}, {"code": 8, "data": "000121000102030405"}],
    });
    assert_eq!(result["edns"], expected, "{result}");
    assert_eq!((&result["rcode"], &result["additional"]), (&json!("badvers"), &json!([])), "{result}");
}

fn the_size_of_an_answer_over_udp_is_chosen(lab: &Lab) {
    let server = lab.server(&[]);
    let big = |more: Value| {
        let mut options = json!({"qname": "big.lab.test", "rdtype": "TXT"});
        options.as_object_mut().expect("options").extend(more.as_object().expect("options").clone());
        lookup(&server, options)
    };
    // 1.6 kB: more than the default allows.
    for (options, transport) in [
        (json!({}), "tcp"),
        (json!({"udp_payload_size": 512}), "tcp"),
        (json!({"udp_payload_size": 4096}), "udp"),
        (json!({"edns": false}), "tcp"),
    ] {
        let result = big(options.clone());
        assert_eq!(
            (&result["transport"], result["answer"].as_array().map(Vec::len)),
            (&json!(transport), Some(6)),
            "{options}: {result}"
        );
        assert!(result["size"].as_u64().is_some_and(|size| size > 1232), "{result}");
    }
    for size in [511, 4097] {
        let test = server.test("dns_lookup", &json!({"qname": "www.lab.test", "udp_payload_size": size}));
        let message = test["message"].as_str().expect("a message");
        assert!(message.contains("udp_payload_size") && message.contains(&size.to_string()), "{test}");
    }
}

fn a_query_has_the_bits_that_are_asked_for(lab: &Lab) {
    // The response has the bits of the query; in its address stand the count of additional records and the length.
    name_server(lab, "10.77.0.31:53", |query| {
        let mut reply = response(query);
        reply[7] = 1;
        reply.extend([
            0xc0,
            12,
            0,
            1,
            0,
            1,
            0,
            0,
            0,
            60,
            0,
            4,
            10,
            0,
            query[11],
            u8::try_from(query.len()).expect("short"),
        ]);
        vec![reply]
    });
    let server = lab.server(&[]);
    // Header 12, question 7, OPT record 11, NSID option 4.
    for (options, flags, address) in [
        (json!({}), json!(["rd"]), "10.0.1.30"),
        (json!({"ad": true}), json!(["rd", "ad"]), "10.0.1.30"),
        (json!({"cd": true, "recursion": false}), json!(["cd"]), "10.0.1.30"),
        (json!({"ad": true, "cd": true, "edns": false}), json!(["rd", "ad", "cd"]), "10.0.0.19"),
        (json!({"nsid": true}), json!(["rd"]), "10.0.1.34"),
    ] {
        let mut all = json!({"qname": "x", "ns": "10.77.0.31"});
        all.as_object_mut().expect("options").extend(options.as_object().expect("options").clone());
        let result = lookup(&server, all);
        assert_eq!(
            (&result["flags"], &result["answer"][0]["rdata"], &result["edns"]),
            (&flags, &json!(address), &Value::Null),
            "{options}: {result}"
        );
    }
}

fn zone_transfers_and_edns_options_without_edns_are_refused(lab: &Lab) {
    let server = lab.server(&[]);
    for rdtype in ["AXFR", "ixfr", "TYPE252"] {
        for transport in ["udp", "tcp"] {
            let options = json!({"qname": "lab.test", "rdtype": rdtype, "transport": transport});
            let test = server.test("dns_lookup", &options);
            let message = format!("Provided record type of '{rdtype}' is not allowed: zone transfers (AXFR, IXFR)");
            assert!(test["message"].as_str().is_some_and(|text| text.starts_with(&message)), "{test}");
        }
    }
    for (name, value) in [("dnssec", json!(true)), ("nsid", json!(true)), ("udp_payload_size", json!(4096))] {
        let mut options = json!({"qname": "lab.test", "edns": false});
        options[name] = value;
        let message = format!("Provided option '{name}' needs 'edns' of 'true'. Given: 'false'.");
        assert_eq!(server.test("dns_lookup", &options)["message"], json!(message));
    }
}
