//! `/etc/resolv.conf` as DHCP servers and other programs have it written.

#![no_main]

use scouter_net::system::ResolverConfig;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let config = ResolverConfig::parse(data);
    assert!((1..=5).contains(&config.attempts) && (1..=30).contains(&config.timeout.as_secs()) && config.ndots <= 15);
    assert!(config.search.iter().all(|domain| domain.ends_with('.') && domain.len() > 1));
});
