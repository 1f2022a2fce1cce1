//! What ICMP errors quote, and the extensions behind it (RFC 4884, RFC 4950). A valid structure that is built from the
//! input is found whole; whatever else comes does no harm.

#![no_main]

use scouter_net::Family;
use scouter_net::packet::quoted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [first, length, body @ ..] = data else { return };
    let v6 = first & 1 == 1;
    let family = if v6 { Family::V6 } else { Family::V4 };
    if let Some((quoted, found)) = quoted::split(family, body, usize::from(*length) * if v6 { 8 } else { 4 }) {
        assert!(quoted.transport.len() < body.len());
        let bytes = found.labels.len() * 4 + found.others.iter().map(|object| object.data.len() + 4).sum::<usize>();
        assert!(bytes <= body.len());
    }
    // A quote of 128 bytes that says where it ends, one label and one unknown object.
    let mut message = vec![0; 128];
    message[0] = if v6 { 0x60 } else { 0x45 };
    message[6] = if v6 { 17 } else { 0 };
    let rest: Vec<u8> = body.iter().copied().take(200).collect();
    let mut structure = vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0xff, 0xff, 0xf1, 7];
    let object = u16::try_from(4 + rest.len()).unwrap_or(4).to_be_bytes();
    structure.extend([object[0], object[1], 9, 9]);
    structure.extend(&rest);
    let sum = pnet_packet::util::checksum(&structure, usize::MAX);
    structure[2..4].copy_from_slice(&sum.to_be_bytes());
    message.extend(&structure);
    for said in [128, 0] {
        let Some((_, found)) = quoted::split(family, &message, said) else { panic!("a whole quote is not found") };
        assert_eq!(found.labels.len(), 1);
        let label = found.labels[0];
        assert_eq!((label.value, label.ttl, label.bottom_of_stack), (0xf_ffff, 7, true));
        assert_eq!(found.others.len(), 1);
        assert_eq!(found.others[0].data, rest);
    }
});
