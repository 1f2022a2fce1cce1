//! Messages to the SOCKS proxy, from a browser or any other process (RFC 1928): a message is complete at its last byte,
//! not before and not later.

#![no_main]

use scouter_net::browser::socks::message::{GREETING_BYTES, REQUEST_BYTES, greeting, request};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(Some(length)) = greeting(data) {
        assert!((3..=GREETING_BYTES).contains(&length));
        assert_eq!(greeting(&data[..length]), Ok(Some(length)));
        assert!((0..length).all(|cut| greeting(&data[..cut]) == Ok(None)));
    }
    if let Ok(Some((target, length))) = request(data) {
        assert!((7..=REQUEST_BYTES).contains(&length));
        assert!((0..length).all(|cut| request(&data[..cut]) == Ok(None)));
        assert_eq!(request(&data[..length]), Ok(Some((target, length))));
    }
});
