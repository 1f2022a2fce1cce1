//! Whole ICMP messages as raw sockets hand them over: nothing panics, and what is found lies in the message.

#![no_main]

use scouter_net::packet::icmp as wire;

use wire::Message;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, packet)) = data.split_first() else { return };
    let v6 = first & 1 == 1;
    let message = if v6 { Some(packet) } else { wire::strip_ipv4(packet).map(|(_, message)| message) };
    let Some(message) = message else { return };
    assert!(message.len() <= packet.len());
    let Some(parsed) = wire::parse(v6, message) else { return };
    let key = parsed.key(v6);
    match parsed {
        Message::Reply { identifier, data, .. } => {
            assert_eq!(data.len() + wire::HEADER, message.len());
            assert_eq!(key, Some(wire::Key::Echo(identifier)));
        }
        Message::Error(error) => {
            assert!(error.quoted.transport.len() + wire::HEADER < message.len());
            assert_eq!(error.quoted.target.is_ipv6(), v6);
            assert!(error.extensions.labels.iter().all(|label| label.value < 1 << 20 && label.traffic_class < 8));
            assert!(!error.kind.words.is_empty());
        }
    }
});
