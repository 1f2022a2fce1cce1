//! Certificates as servers send them (RFC 5280): whatever they hold is shown as text, or as unreadable.

#![no_main]

use rustls_pki_types::CertificateDer;
use scouter_net::tls::certificate;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let shown = certificate(&CertificateDer::from(data));
    assert_eq!(shown.sha256.len(), 64);
    assert!(shown.alternative_names.len() <= 256);
    assert!(shown.serial == "unreadable" || shown.serial.bytes().all(|byte| byte.is_ascii_hexdigit()));
});
