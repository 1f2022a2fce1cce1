use crate::system::Sources;

use super::*;

/// Of a host with the name server 192.0.2.53 and interfaces with these addresses.
fn policy(allow: &str, deny: &str) -> Policy {
    let rules = |text: &str| {
        text.split(',').filter(|t| !t.is_empty()).map(|t| t.parse().expect("a rule")).collect::<Vec<Rule>>()
    };
    let folder = tempfile::tempdir().expect("a folder");
    let resolv_conf = folder.path().join("resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 192.0.2.53\nnameserver fe80::53%7\n").expect("written");
    let interfaces = || {
        let addresses = ["127.0.0.1", "192.168.0.9", "9.9.9.1", "2a00:9::1", "2a00:9::"];
        Ok(addresses.map(|address| address.parse().expect("an address")).to_vec())
    };
    let system = System::follow(Sources { resolv_conf, hosts: folder.path().join("hosts"), interfaces });
    Policy::new(rules(allow), rules(deny), Arc::new(system))
}

fn permits(policy: &Policy, address: &str, name: Option<&str>) -> bool {
    policy.permit(address.parse().expect("an address"), name.map(Names::of).as_ref()).is_ok()
}

#[test]
fn only_globally_reachable_addresses_are_open_by_default() {
    let closed = "0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 169.254.169.254 \
        172.16.0.1 172.31.255.255 192.0.0.1 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 \
        198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 \
        ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b::10.1.1.1 \
        64:ff9b:1::1 64:ff9b:1::8.8.8.8 100::1 100:0:0:1::1 2001::1 2001:2::1 2001:10::1 2001:db8::1 \
        2002:7f00:1:: 2002:a00:1::1 2002:c0a8:101::1 168.63.129.16 100.100.100.200 192.0.0.192 fd20:ce::254 \
        2001:0:808:808:0:0:80ff:fffe 2001:0:7f00:1:0:0:f7f7:f7f7 3fff::1 3fff:fff::1 5f00::1 fc00::1 fd00:ec2::254 \
        fe80::1 febf::1 fec0::1 feff::1 ff02::1 ff0e::1 4000::1 1::1 8000::1 ::ffff:0:127.0.0.1";
    for address in closed.split_whitespace() {
        assert!(!permits(&policy("", ""), address, None), "{address} must be refused");
    }
    let open = "1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 192.0.0.9 198.17.0.1 198.20.0.1 \
        223.255.255.255 2600::1 2a00:1450::1 2001:4860:4860::8888 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1 \
        2001:20::1 3ffe::1 9.9.9.2 2a00:9::2";
    for address in open.split_whitespace() {
        assert!(permits(&policy("", ""), address, None), "{address} must be allowed");
    }
}

#[test]
fn deny_wins_over_allow_in_every_form_of_an_address() {
    for deny in ["10.9.0.0/16", "::ffff:10.9.0.0/112"] {
        let policy = policy("10.0.0.0/8,any", deny);
        assert!(permits(&policy, "10.1.0.1", None));
        for denied in [
            "10.9.0.1",
            "::ffff:10.9.0.1",
            "64:ff9b::10.9.0.1",
            "2002:a09:1::1",
            "::10.9.0.1",
            "::ffff:0:10.9.0.1",
            "64:ff9b:1::10.9.0.1",
            "64:ff9b:1:a09:0:100::",
            "2001:0:808:808:0:0:f5f6:fffe",
        ] {
            assert!(!permits(&policy, denied, None), "{deny}: {denied}");
        }
    }
}

#[test]
fn an_allowed_block_opens_the_forms_that_lead_into_it() {
    for allow in ["10.0.0.0/8", "::ffff:10.0.0.0/104"] {
        let policy = policy(allow, "");
        assert!(permits(&policy, "10.0.0.1", None), "{allow}");
        assert!(permits(&policy, "::ffff:10.0.0.1", None), "{allow}");
        assert!(permits(&policy, "64:ff9b::10.0.0.1", None), "{allow}");
        assert!(!permits(&policy, "64:ff9b::127.0.0.1", None), "{allow}");
        assert!(!permits(&policy, "192.168.0.1", None), "{allow}");
    }
}

#[test]
fn addresses_of_this_host_are_closed_in_every_form_until_their_address_is_opened() {
    let forms = "9.9.9.1 ::ffff:9.9.9.1 64:ff9b::9.9.9.1 2002:909:901::1 2a00:9::1 2a00:9::";
    for form in forms.split_whitespace() {
        let name = Some("www.lab.example");
        assert!(!permits(&policy("", ""), form, None), "{form}");
        assert!(!permits(&policy("*.lab.example", ""), form, name), "{form}: a rule for a name does not open it");
        assert!(permits(&policy("9.9.9.0/24,2a00:9::/64", ""), form, None), "{form}");
        assert!(permits(&policy("any", ""), form, None), "{form}");
        assert!(!permits(&policy("any", "9.9.9.1,2a00:9::/64"), form, None), "{form}");
    }
    let denied = |address: &str| {
        policy("", "").permit(address.parse().expect("an address"), None).expect_err("closed").to_string()
    };
    assert_eq!(denied("9.9.9.1"), "Target '9.9.9.1' is not allowed: it is an address of this host.");
    assert_eq!(
        denied("64:ff9b::9.9.9.1"),
        "Target '64:ff9b::909:901' is not allowed: it leads to 9.9.9.1, which is an address of this host."
    );
    assert_eq!(denied("192.168.0.9"), "Target '192.168.0.9' is not allowed: it is a private address (RFC 1918).");
}

#[test]
fn names_open_and_close_the_addresses_found_under_them() {
    let policy = policy("intranet.example,*.lab.example,bücher.example", "bad.lab.example,evil.example");
    assert!(permits(&policy, "10.0.0.1", Some("Intranet.Example.")));
    assert!(!permits(&policy, "10.0.0.1", None));
    assert!(!permits(&policy, "10.0.0.1", Some("x.intranet.example")));
    assert!(permits(&policy, "10.0.0.1", Some("a.b.lab.example")));
    assert!(!permits(&policy, "10.0.0.1", Some("lab.example")));
    assert!(!permits(&policy, "10.0.0.1", Some("evillab.example")));
    assert!(!permits(&policy, "8.8.8.8", Some("bad.lab.example")));
    // However an internationalised name is spelt.
    for name in ["bücher.example", "BÜCHER.example.", "xn--bcher-kva.example"] {
        assert!(permits(&policy, "10.0.0.1", Some(name)), "{name}");
    }
    for name in ["evil.example", "ｅｖｉｌ.example", "EVIL。example"] {
        assert!(!permits(&policy, "8.8.8.8", Some(name)), "{name}");
    }
}

/// The answers about a name may lead to other names, which the owner of a zone has chosen.
#[test]
fn aliases_are_denied_and_open_nothing() {
    let aliases = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let private = "10.0.0.1".parse().expect("an address");
    let global = "8.8.8.8".parse().expect("an address");
    let policy = policy("intranet.example,*.lab.example", "bad.example,*.evil.example");
    let stranger = Names::new("stranger.example", "stranger.example.", &aliases(&["Intranet.Example."]));
    assert!(policy.permit(private, Some(&stranger)).is_err(), "a stranger's name that leads to an open one");
    let leaves = Names::new("intranet.example", "intranet.example.", &aliases(&["cdn.example."]));
    assert!(policy.permit(private, Some(&leaves)).is_ok(), "an open name that leads elsewhere");
    for passed in [&["bad.example."][..], &["x.example.", "BAD.example."], &["a.evil.example.", "y.example."]] {
        for name in ["open.example", "www.lab.example"] {
            let names = Names::new(name, name, &aliases(passed));
            assert!(policy.permit(global, Some(&names)).is_err(), "{name}: {passed:?}");
        }
    }
    let denied =
        policy.permit(global, Some(&Names::new("a", "a", &aliases(&["b.evil.example."])))).expect_err("denied");
    assert_eq!(
        denied.to_string(),
        "Target 'a (8.8.8.8)' is not allowed: it leads to b.evil.example, and the operator denies *.evil.example."
    );
}

#[test]
fn rules_match_a_name_as_it_was_written_and_as_it_was_completed() {
    let (private, global) = ("10.0.0.1".parse().expect("an address"), "8.8.8.8".parse().expect("an address"));
    let by_completion = policy("db.corp.example", "www.corp.example");
    let names = |name: &str| Names::new(name, &format!("{name}.corp.example."), &[]);
    assert!(by_completion.permit(private, Some(&names("db"))).is_ok());
    assert!(by_completion.permit(private, Some(&names("other"))).is_err());
    assert!(by_completion.permit(global, Some(&names("www"))).is_err());
    let as_written = policy("db", "www");
    assert!(as_written.permit(private, Some(&names("db"))).is_ok());
    assert!(as_written.permit(global, Some(&names("www"))).is_err());
}

#[test]
fn rules_match_every_name_that_an_address_was_found_under() {
    let policy = policy("open.example", "bad.example");
    let private = "10.0.0.1".parse().expect("an address");
    for order in [["open.example", "other.example"], ["other.example", "open.example"]] {
        let mut names = Names::default();
        for name in order {
            names.add(&Names::of(name));
        }
        assert!(policy.permit(private, Some(&names)).is_ok(), "{order:?}: the last one is not the only one");
        names.add(&Names::of("bad.example"));
        names.add(&Names::of("open.example"));
        assert!(policy.permit(private, Some(&names)).is_err(), "{order:?}: DENY wins");
    }
}

#[test]
fn a_rule_for_a_name_opens_networks_and_never_this_host_or_its_cloud() {
    let name = Some("www.lab.example");
    let by_name = policy("*.lab.example", "");
    let private = "10.0.0.1 172.16.0.1 192.168.1.1 100.64.0.1 fd77::1 192.0.2.1 198.51.100.1 198.18.0.1 240.0.0.1 \
        2001:db8::1 fec0::1 8.8.8.8 64:ff9b::10.0.0.1 2002:a00:1::1 ::10.0.0.1";
    for address in private.split_whitespace() {
        assert!(permits(&by_name, address, name), "{address}");
    }
    let never = "0.0.0.0 127.0.0.1 127.9.9.9 169.254.1.1 169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 \
        192.0.0.192 224.0.0.1 255.255.255.255 :: ::1 fe80::1 ff02::1 fd00:ec2::254 fd00:ec2::23 fd20:ce::254 \
        fd00:42::42 fd00:c1::a9fe:a9fe 192.168.0.9 9.9.9.1 2a00:9::1 ::127.0.0.1 ::ffff:127.0.0.1 \
        ::ffff:169.254.169.254 64:ff9b::127.0.0.1 64:ff9b::169.254.169.254 64:ff9b::100.100.100.200 \
        64:ff9b:1::169.254.169.254 2002:7f00:1::1 2002:a9fe:a9fe::1 ::ffff:0:127.0.0.1 2001:0:7f00:1:0:0:f7f7:f7f7";
    for address in never.split_whitespace() {
        assert!(!permits(&by_name, address, name), "{address}");
        let opened = policy(&format!("*.lab.example,{address}"), "");
        assert!(permits(&opened, address, name), "{address} is opened by its address");
    }
    let names = name.map(Names::of);
    let denied = by_name.permit("127.0.0.1".parse().expect("an address"), names.as_ref()).expect_err("closed");
    assert_eq!(
        denied.to_string(),
        "Target 'www.lab.example (127.0.0.1)' is not allowed: it is a loopback address, and a rule for a name does \
         not open it."
    );
}

#[test]
fn own_name_servers_may_be_asked_but_not_probed() {
    let policy = policy("", "");
    let server = "192.0.2.53".parse().expect("address");
    assert!(policy.permit_question(server, 53, None).is_ok() && policy.permit_question(server, 853, None).is_ok());
    assert!(policy.permit_question(server, 8000, None).is_err(), "something else may listen there");
    assert!(policy.permit(server, None).is_err());
    let link_local = policy.permit_question("fe80::53".parse().expect("address"), 53, None).expect("permitted");
    assert_eq!(link_local.socket_address(53).to_string(), "[fe80::53%7]:53");
}
