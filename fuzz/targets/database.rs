//! Damaged databases of autonomous systems: refused or used, and neither ends the program.

#![no_main]

use scouter_net::asn::Database;

const WHOLE: &[u8] = include_bytes!("../../tests/support/asn.mmdb");

fn check(bytes: Vec<u8>) {
    let Ok(database) = Database::check(bytes) else { return };
    for address in ["10.80.1.1", "203.0.113.5", "fd80::1", "2001:db8:5::5", "::", "255.255.255.255"] {
        let _ = database.lookup(address.parse().expect("an address"));
    }
}

libfuzzer_sys::fuzz_target!(
    // A panic of the parser is caught where it is used (and libFuzzer would end at the first one).
    init: std::panic::set_hook(Box::new(|_| {})),
    |data: &[u8]| {
        // A file, or changes to a whole one: each where it happens (two bytes), and to what.
        if data.first().is_some_and(|first| first & 1 == 0) {
            return check(data[1..].to_vec());
        }
        let mut bytes = WHOLE.to_vec();
        for change in data.get(1..).unwrap_or_default().as_chunks::<3>().0 {
            let place = usize::from(u16::from_be_bytes([change[0], change[1]])) % bytes.len();
            bytes[place] = change[2];
        }
        check(bytes);
    }
);
