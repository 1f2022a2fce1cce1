//! Rules and addresses: a rule that is shown and parsed again is the same rule, DENY wins whatever ALLOW says, and no
//! form of a closed address passes.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use scouter_net::policy::{Names, Policy, Rule};

/// IPv6 addresses that lead to this IPv4 address.
fn forms(v4: Ipv4Addr) -> [Ipv6Addr; 6] {
    let [a, b] = [0, 2].map(|at| u16::from_be_bytes([v4.octets()[at], v4.octets()[at + 1]]));
    [
        v4.to_ipv6_mapped(),
        v4.to_ipv6_compatible(),
        Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, a, b),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b),
        Ipv6Addr::new(0x2002, a, b, 1, 2, 3, 4, 5),
        Ipv6Addr::new(0x2001, 0, 0x808, 0x808, 0, 0, !a, !b),
    ]
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((bytes, rest)) = data.split_first_chunk::<16>() else { return };
    let text = String::from_utf8_lossy(rest);
    let mut lines = text.split('\n');
    let mut rules = || lines.next().unwrap_or_default().split(',').filter_map(|rule| rule.parse().ok()).collect();
    let (allow, deny): (Vec<Rule>, Vec<Rule>) = (rules(), rules());
    for rule in allow.iter().chain(&deny) {
        assert_eq!(rule.to_string().parse().as_ref(), Ok(rule));
    }
    let mut names = || lines.next().unwrap_or_default().to_owned();
    let names = Names::new(&names(), &names(), &[names()]);
    let name = data.first().is_some_and(|byte| byte & 1 == 1).then_some(&names);
    let v6 = Ipv6Addr::from(*bytes);
    let v4 = Ipv4Addr::from([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let default = Policy::new(vec![], vec![], Arc::default());
    let open = Policy::new(allow.clone(), deny.clone(), Arc::default());
    let closed = Policy::new(allow, [deny, vec![Rule::Any]].concat(), Arc::default());
    for address in [IpAddr::V6(v6), IpAddr::V4(v4)] {
        let permitted = open.permit(address, name);
        assert!(permitted.is_err() || permitted.is_ok_and(|permitted| permitted.address() == address.to_canonical()));
        assert!(closed.permit(address, name).is_err());
    }
    for form in forms(v4) {
        if default.permit(v4.into(), None).is_err() {
            assert!(default.permit(form.into(), None).is_err(), "{form} leads to {v4}");
        }
    }
});
