//! Whole ICMP messages as raw sockets hand them over: nothing panics, and what is found lies in the message.

#![no_main]

use scouter_net::packet::icmp as wire;

use scouter_net::Family;
use wire::Message;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, packet)) = data.split_first() else { return };
    let family = if first & 1 == 1 { Family::V6 } else { Family::V4 };
    let message = match family {
        Family::V4 => wire::strip_ipv4(packet).map(|(_, message)| message),
        Family::V6 => Some(packet),
    };
    let Some(message) = message else { return };
    assert!(message.len() <= packet.len());
    let Some(parsed) = wire::parse(family, message) else { return };
    let flow = parsed.flow(family);
    match parsed {
        Message::EchoReply { identifier, payload, .. } => {
            assert_eq!(payload.len() + wire::HEADER, message.len());
            assert_eq!(flow, Some(wire::FlowKey::Icmp(identifier)));
        }
        Message::Error(error) => {
            assert!(error.quoted.transport.len() + wire::HEADER < message.len());
            assert_eq!(Family::of(error.quoted.target), family);
            assert!(error.extensions.labels.iter().all(|label| label.value < 1 << 20 && label.traffic_class < 8));
            assert!(!error.kind.description.is_empty());
        }
    }
});
