//! Real servers in network namespaces; the same questions put to ping, dig and curl.

mod addresses;
mod answers;
mod attacks;
mod browser;
mod dns;
mod dns_opt;
mod dns_path;
mod faults;
mod http;
mod http_failures;
mod mapped;
mod modes;
mod pace;
pub mod pages;
mod path;
mod ping;
mod policy;
mod sending;
mod slow;
mod spoofing;
mod streams;
mod visits;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::lab::Lab;
use crate::support::{plugins, root, scouter};
use crate::{docs, trials};

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    let mut all = trials!("lab", lab => the_first_readme_s_own_example, every_documented_example_runs);
    all.extend(ping::trials(lab));
    all.extend(dns::trials(lab));
    all.extend(http::trials(lab));
    all.extend(addresses::trials(lab));
    all.extend(http_failures::trials(lab));
    all.extend(path::trials(lab));
    all.extend(pace::trials(lab));
    all.extend(dns_opt::trials(lab));
    all.extend(dns_path::trials(lab));
    all.extend(mapped::trials(lab));
    all.extend(slow::trials(lab));
    all.extend(modes::trials(lab));
    all.extend(answers::trials(lab));
    all.extend(sending::trials(lab));
    all.extend(spoofing::trials(lab));
    all.extend(faults::trials(lab));
    all.extend(policy::trials(lab));
    all.extend(pages::trials(lab));
    all.extend(visits::trials(lab));
    all.extend(streams::trials(lab));
    all.extend(browser::trials(lab));
    all.extend(attacks::trials(lab));
    all
}

/// A number out of a JSON text or number.
fn number(value: &Value) -> f64 {
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("not a number: {value}"))
}

/// The request with which the first version's README began.
fn the_first_readme_s_own_example(lab: &Lab) {
    let server = lab.server(&[]);
    let results = server
        .run(&json!({"http_request": [{"url": "https://www.lab.test"}], "dns_lookup": [{"qname": "www.lab.test"}]}));
    let (http, dns) = (&results["http_request"][0], &results["dns_lookup"][0]);
    assert_eq!(
        (&http["failed"], &http["result"]["status"], &http["result"]["reason"]),
        (&json!(false), &json!(200), &json!("OK")),
        "{http}"
    );
    assert_eq!(
        (&dns["failed"], &dns["result"]["rcode"], &dns["result"]["ns"]),
        (&json!(false), &json!("ok"), &json!("10.77.0.2")),
        "{dns}"
    );
    let answer =
        json!([{"rrname": "www.lab.test.", "type": "A", "rclass": "IN", "ttl": 60, "rdlen": 4, "rdata": "10.77.0.2"}]);
    assert_eq!(dns["result"]["answer"], answer);
    assert_eq!(dns["result"]["question"], json!({"qname": "www.lab.test.", "qtype": "A", "qclass": "IN"}));
}

/// The commands of docs/tests.md, with the lab's names in the place of the Internet's.
fn every_documented_example_runs(lab: &Lab) {
    let commands = docs::commands(&docs::page("docs/tests.md"));
    let examples: Vec<&str> =
        commands.iter().filter_map(|command| command.strip_prefix("target/release/scouter ")).collect();
    assert_eq!(examples.len(), 6, "{commands:?}");
    for example in examples {
        let here = example
            .replace("https://example.com", "https://www.lab.test")
            .replace("example.com", "lab.test")
            .replace("192.0.2.53", "10.77.0.2");
        let mut command = lab.probe.command(scouter());
        command.args(here.split(' ')).env("SCOUTER_PLUGIN_DIR", plugins()).env("SSL_CERT_FILE", lab.path("ca.pem"));
        command.env("SCOUTER_CACHE_DIR", Path::new(scouter()).with_file_name("plugin-cache"));
        let output = command.env("SCOUTER_TARGETS_ALLOW", "10.77.0.0/24,fd77::/64").output().expect("runs");
        let test: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{here}: {output:?}"));
        assert_eq!((output.status.code(), &test["failed"]), (Some(0), &json!(false)), "{here}: {test}");
    }
}

/// A script of the tests' own in the target's namespace, which prints what it serves and on which ports. It ends with its
/// standard input.
struct Peers(Child);

impl Drop for Peers {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn python(lab: &Lab, script: &str, arguments: &[&str]) -> (Peers, Vec<(String, String)>) {
    let mut command = lab.target.command(root().join("target/lab-venv/bin/python").to_str().expect("UTF-8"));
    command.arg(root().join("tests/support").join(script)).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python runs");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let port = |line: String| line.split_once('\t').map(|(name, port)| (name.to_owned(), port.to_owned()));
    let ports = lines.take_while(|line| line != "ready").map(|line| port(line).expect("a port")).collect();
    (Peers(child), ports)
}
