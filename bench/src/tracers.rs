//! Whatever traces a path, what it is run with, and the routers that it found.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::machine::trip;
use crate::peers::{once, timed};
use crate::support::lab::Namespace;
use crate::support::server::Server;

/// The sources of answers, by TTL.
pub type Hops = Vec<BTreeSet<String>>;

#[derive(Clone)]
pub struct Tracer {
    /// ICMP, UDP or TCP.
    pub proto: &'static str,
    how: How,
}

#[derive(Clone)]
enum How {
    /// Ours: options besides `dst`.
    Scouter(Value),
    /// `traceroute`, `mtr` or `trip`: arguments before the target.
    Program(&'static str, Vec<&'static str>),
}

impl Tracer {
    pub fn scouter(proto: &'static str, paths: u8) -> Self {
        let options = if paths > 1 { json!({"proto": proto, "paths": paths}) } else { json!({"proto": proto}) };
        Self { proto, how: How::Scouter(options) }
    }

    pub fn program(proto: &'static str, name: &'static str, arguments: &[&'static str]) -> Self {
        Self { proto, how: How::Program(name, arguments.to_vec()) }
    }

    pub fn label(&self) -> String {
        match &self.how {
            How::Scouter(options) => {
                let words = options.as_object().into_iter().flatten().map(|(name, value)| {
                    format!(" {name}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                });
                format!("Scouter{}", words.collect::<String>())
            }
            How::Program(name, arguments) => {
                // What every run has says nothing.
                let words = arguments.join(" ");
                let own = ["-n ", "-r ", "-m json ", "-m 32 ", "-t 32 "]
                    .iter()
                    .fold(words + " ", |words, same| words.replace(same, ""));
                format!("{name} {own}").trim().to_owned()
            }
        }
    }

    pub fn is_ours(&self) -> bool {
        matches!(self.how, How::Scouter(_))
    }

    pub fn is_there(&self) -> bool {
        !matches!(self.how, How::Program("trip", _)) || trip().is_some()
    }

    /// Milliseconds, and what was found.
    pub fn trace(&self, probe: &Namespace, server: &Server, dst: &str) -> (f64, Hops) {
        match &self.how {
            How::Scouter(options) => {
                let mut options = options.clone();
                options["dst"] = json!(dst);
                let started = Instant::now();
                let test = server.test("traceroute", &options);
                (started.elapsed().as_secs_f64() * 1e3, ours(&test["result"]))
            }
            How::Program(name, arguments) => {
                let arguments = [arguments, &[dst][..]].concat();
                if let Some(trip) = trip().filter(|_| *name == "trip") {
                    // It cannot be told not to look names up, and so needs the namespace's resolver.
                    let ran = timed(probe.command(&trip.display().to_string()).args(arguments));
                    return (ran.ms, trippy(&ran.text));
                }
                let ran = once(probe, Path::new(name), &arguments);
                (ran.ms, lines(&ran.text))
            }
        }
    }
}

/// A hop has the source of the first flow, and those of every other flow that was asked for.
fn ours(result: &Value) -> Hops {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let first: Vec<Value> = list(&result["trace"]).iter().map(|hop| hop["src"].clone()).collect();
    let mut hops = Hops::new();
    for flow in list(&result["paths"]).iter().map(|flow| list(&flow["srcs"])).chain([first]) {
        hops.resize(hops.len().max(flow.len()), BTreeSet::new());
        for (hop, source) in hops.iter_mut().zip(flow) {
            hop.extend(source.as_str().map(str::to_owned));
        }
    }
    hops
}

/// `traceroute` and `mtr --report`: a line that begins with a TTL, and lines with more sources of the same.
fn lines(text: &str) -> Hops {
    let mut hops = Hops::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let is_hop = first.trim_end_matches(['.', '|', '-']).parse::<u8>().is_ok();
        if is_hop {
            hops.push(BTreeSet::new());
        }
        let rest = if is_hop { words } else { line.split_whitespace() };
        let sources = rest.map(|word| word.trim_matches(['(', ')'])).filter(|word| word.parse::<IpAddr>().is_ok());
        if let Some(hop) = hops.last_mut() {
            hop.extend(sources.map(str::to_owned));
        }
    }
    hops
}

fn trippy(text: &str) -> Hops {
    let report: Value = serde_json::from_str(text).unwrap_or_default();
    let hops = report["hops"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sources = |hop: &Value| -> BTreeSet<String> {
        let hosts = hop["hosts"].as_array().map(Vec::as_slice).unwrap_or_default();
        hosts.iter().filter_map(|host| host["ip"].as_str().map(str::to_owned)).collect()
    };
    hops.iter().map(sources).collect()
}

/// What a right answer is.
#[derive(Clone, Copy, PartialEq)]
pub enum Right {
    /// The routers on the way and the target, in one path or several.
    Path,
    /// The same, and every router of those with equal cost.
    EveryPath,
    /// The routers up to the one that drops, and nothing behind it.
    Nothing,
}

/// Patterns stand for the routers, `?` in them for any one character, None for one that is silent.
pub fn is_right(right: Right, expected: &[Option<String>], hops: &Hops) -> bool {
    let fits = |pattern: &str, source: &str| {
        pattern.len() == source.len() && pattern.chars().zip(source.chars()).all(|(p, s)| p == '?' || p == s)
    };
    let hop = |(pattern, sources): (&Option<String>, &BTreeSet<String>)| match pattern {
        None => sources.is_empty(),
        Some(pattern) => {
            let wanted = if right == Right::EveryPath && pattern.contains('?') { 2 } else { 1 };
            sources.len() >= wanted && sources.iter().all(|source| fits(pattern, source))
        }
    };
    let all = hops.len() >= expected.len() && expected.iter().zip(hops).all(hop);
    let behind = hops.iter().skip(expected.len());
    all && match right {
        Right::Nothing => behind.into_iter().all(BTreeSet::is_empty),
        Right::Path | Right::EveryPath => hops.len() == expected.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hops(sources: &[&[&str]]) -> Hops {
        sources.iter().map(|hop| hop.iter().map(|source| (*source).to_owned()).collect()).collect()
    }

    #[test]
    fn hops_are_read_from_what_traceroute_prints() {
        let text = "traceroute to 10.81.0.2 (10.81.0.2), 30 hops max, 60 byte packets\n \
                    1  r1.path.test (10.80.1.2)  0.039 ms  0.013 ms\n \
                    2  10.80.31.2  0.1 ms 10.80.32.2  0.2 ms\n 3  * * *\n 4  10.81.0.2  0.1 ms !H\n";
        assert_eq!(lines(text), hops(&[&["10.80.1.2"], &["10.80.31.2", "10.80.32.2"], &[], &["10.81.0.2"]]));
    }

    #[test]
    fn hops_are_read_from_what_mtr_and_trippy_print() {
        let text = "Start: 2026-11-26T00:00:00+0000\nHOST: vm     Loss%   Snt   Last   Avg  Best  Wrst StDev\n  \
                    1.|-- 10.80.1.2   0.0%     1    0.1   0.1   0.1   0.1   0.0\n  2.|-- ???  100.0  1  0.0\n";
        assert_eq!(lines(text), hops(&[&["10.80.1.2"], &[]]));
        let text = r#"{"hops":[{"ttl":1,"hosts":[{"ip":"10.80.1.2"}]},{"ttl":2,"hosts":[]}]}"#;
        assert_eq!(trippy(text), hops(&[&["10.80.1.2"], &[]]));
    }

    #[test]
    fn our_hops_hold_the_sources_of_every_path() {
        let one = json!({"trace": [{"ttl": 1, "src": "a"}, {"ttl": 2, "src": null}], "paths": []});
        assert_eq!(ours(&one), hops(&[&["a"], &[]]));
        let two = json!({"trace": [{"ttl": 1, "src": "a"}], "paths": [{"srcs": ["a", null]}, {"srcs": ["b", "c"]}]});
        assert_eq!(ours(&two), hops(&[&["a", "b"], &["c"]]));
    }

    #[test]
    fn an_answer_is_right_when_every_hop_is() {
        let expected = [Some("10.0.0.?".to_owned()), None, Some("10.0.9.9".to_owned())];
        let right = hops(&[&["10.0.0.1"], &[], &["10.0.9.9"]]);
        assert!(is_right(Right::Path, &expected, &right));
        for wrong in [
            hops(&[&["10.0.1.1"], &[], &["10.0.9.9"]]),
            hops(&[&["10.0.0.1"], &["10.0.5.5"], &["10.0.9.9"]]),
            hops(&[&["10.0.0.1"], &[], &[]]),
            hops(&[&["10.0.0.1"], &[]]),
            hops(&[&["10.0.0.1"], &[], &["10.0.9.9"], &["10.0.9.9"]]),
        ] {
            assert!(!is_right(Right::Path, &expected, &wrong), "{wrong:?}");
        }
        assert!(!is_right(Right::EveryPath, &expected, &right), "one of two routers");
        assert!(is_right(Right::EveryPath, &expected, &hops(&[&["10.0.0.1", "10.0.0.2"], &[], &["10.0.9.9"]])));
    }

    #[test]
    fn behind_a_black_hole_is_nothing() {
        let expected = [Some("10.0.0.1".to_owned())];
        assert!(is_right(Right::Nothing, &expected, &hops(&[&["10.0.0.1"], &[], &[]])));
        assert!(!is_right(Right::Nothing, &expected, &hops(&[&["10.0.0.1"], &[], &["10.0.9.9"]])));
    }
}
