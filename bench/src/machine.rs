//! On what it was measured: machine, kernel, programs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::root;

#[derive(Default)]
pub struct Machine {
    facts: Vec<(&'static str, String)>,
    programs: Vec<(&'static str, String)>,
}

/// A peer, and how it says its version.
const PROGRAMS: [(&str, &[&str]); 14] = [
    ("prometheus-blackbox-exporter", &["--version"]),
    ("fping", &["--version"]),
    ("ping", &["-V"]),
    ("traceroute", &["--version"]),
    ("mtr", &["--version"]),
    ("trip", &["--version"]),
    ("dig", &["-v"]),
    ("dnsperf", &["-h"]),
    ("curl", &["--version"]),
    ("chromedriver", &["--version"]),
    ("chromium", &["--version"]),
    ("firefox-esr", &["--version"]),
    ("nginx", &["-v"]),
    ("nsd", &["-v"]),
];

/// trippy, where `setup.sh bench` has put it.
pub fn trip() -> Option<PathBuf> {
    Some(root().join("target/bench-tools/bin/trip")).filter(|path| path.exists())
}

impl Machine {
    pub fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        let memory = read("/proc/meminfo").split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok());
        let load = read("/proc/loadavg");
        let load = load.split(' ').next().unwrap_or_default();
        let busy = load.parse::<f64>().is_ok_and(|load| load > BUSY);
        let facts = vec![
            ("date", said("date", &["-u", "+%F %H:%M UTC"]).unwrap_or_default()),
            ("Scouter", format!("{} at {}", env!("CARGO_PKG_VERSION"), commit())),
            ("processor", format!("{cores} × {}", model.unwrap_or("unknown"))),
            ("memory", memory.map_or_else(String::new, |kb| format!("{} MiB", kb >> 10))),
            ("kernel", format!("{} {}", read("/proc/sys/kernel/ostype"), read("/proc/sys/kernel/osrelease"))),
            ("compiler", said("rustc", &["--version"]).unwrap_or_default()),
            (
                "load before",
                format!("{load}{}", if busy { ": **the machine was busy, figures are no good**" } else { "" }),
            ),
        ];
        let programs = PROGRAMS.iter().map(|(name, arguments)| (*name, version(name, arguments))).collect();
        Self { facts, programs }
    }

    pub fn markdown(&self) -> String {
        let rows: Vec<String> = self.facts.iter().map(|(name, value)| format!("| {name} | {value} |\n")).collect();
        let programs: Vec<String> = self.programs.iter().map(|(name, version)| format!("{name} {version}")).collect();
        format!(
            "| on | |\n| --- | --- |\n{}| beside | {} |\n\nLoad generator, servers and targets share the cores.\n",
            rows.concat(),
            programs.join(", ")
        )
    }

    pub fn json(&self) -> Value {
        let object = |pairs: &[(&str, String)]| -> Value {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), json!(value)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        json!({"facts": object(&self.facts), "programs": object(&self.programs)})
    }
}

/// Processes that want to run at once, on average over a minute: more than this is somebody else's work.
const BUSY: f64 = 0.7;

/// What a command prints, on whichever stream; None when it cannot be run.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).current_dir(root()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).trim().to_owned())
}

fn commit() -> String {
    let id = said("git", &["rev-parse", "--short=10", "HEAD"]).unwrap_or_default();
    let changed = said("git", &["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    id + if changed { ", with changes" } else { "" }
}

fn version(name: &str, arguments: &[&str]) -> String {
    let program = match name {
        "trip" => trip().map(|path| path.display().to_string()),
        name => Some(name.to_owned()),
    };
    let text = program.and_then(|program| said(&program, arguments));
    text.map_or_else(|| "(not installed)".into(), |text| number(&text))
}

/// The first word that looks like a version, after the word for it where there is one.
fn number(text: &str) -> String {
    let at = text.to_ascii_lowercase().find("version").unwrap_or(0);
    let text = &text[at..];
    let words = text.split(|c: char| c.is_whitespace() || "/,()".contains(c)).map(|word| {
        word.strip_prefix("iputils-").or(word.strip_prefix("DiG-")).unwrap_or(word).trim_start_matches('v')
    });
    let looks = |word: &&str| {
        word.starts_with(|c: char| c.is_ascii_digit())
            && (word.contains('.') || word.len() == 8 && word.chars().all(|c| c.is_ascii_digit()))
    };
    let mut words = words.skip_while(|word| !looks(word));
    words.next().map_or_else(|| "unknown".into(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        for (text, expected) in [
            ("blackbox_exporter, version 0.23.0 (branch: debian/sid, revision: 0.23.0-4+b4)", "0.23.0"),
            ("fping: Version 5.1", "5.1"),
            ("ping from iputils 20221126", "20221126"),
            ("Modern traceroute for Linux, version 2.1.2\nCopyright", "2.1.2"),
            ("mtr 0.95", "0.95"),
            ("trip 0.13.0", "0.13.0"),
            ("DiG 9.18.33-1~deb12u2-Debian", "9.18.33-1~deb12u2-Debian"),
            ("-s the server (default: 127.0.0.1)\nDNS Performance Testing Tool\nVersion 2.10.0", "2.10.0"),
            ("curl 7.88.1 (x86_64-pc-linux-gnu) libcurl/7.88.1", "7.88.1"),
            ("nginx version: nginx/1.22.1", "1.22.1"),
            ("NSD version 4.6.1\nWritten by NLnet Labs.", "4.6.1"),
            ("no number", "unknown"),
        ] {
            assert_eq!(number(text), expected);
        }
    }
}
