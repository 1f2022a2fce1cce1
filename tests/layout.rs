//! The layout as the sources have it: arrows point down, `net` knows neither wasmtime nor axum, the host knows no plugin by
//! name, and a file holds one thing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use libtest_mimic::Trial;

use crate::support::root;
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("layout":
        arrows_of_the_host_point_down,
        folders_of_net_make_no_circle,
        net_knows_neither_wasmtime_nor_axum,
        only_the_sandbox_knows_wasmtime,
        the_host_knows_no_plugin_by_name,
        no_file_has_more_than_500_lines,
    )
}

/// The modules of the host, from above to below: each may use what stands after it.
const HOST: [&str; 15] = [
    "main", "cli", "server", "api", "runner", "queue", "receipts", "plan", "sandbox", "services", "slots", "model",
    "metrics", "memory", "config",
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())).flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "target" {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// A file without its comments and unit tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("read");
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Which module uses which: from each `crate::x` and `crate::{x, y}`.
fn arrows(crate_root: &Path) -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    let module_of = |path: &Path| {
        let first = path.strip_prefix(crate_root).expect("inside").iter().next().expect("a name");
        first.to_str().expect("UTF-8").trim_end_matches(".rs").to_owned()
    };
    let files = sources(crate_root);
    let modules: BTreeSet<String> = files.iter().map(|path| module_of(path)).collect();
    let mut arrows: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for path in &files {
        let from = module_of(path);
        for rest in code(path).split("crate::").skip(1) {
            let names = match rest.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap_or_default().split(',').collect(),
                None => vec![rest],
            };
            for name in names {
                let end = |c: char| !c.is_alphanumeric() && c != '_';
                let to = name.trim().split(end).next().unwrap_or_default();
                if to != from && modules.contains(to) {
                    arrows.entry(from.clone()).or_default().insert(to.to_owned(), path.clone());
                }
            }
        }
    }
    arrows
}

fn arrows_of_the_host_point_down() {
    let place = |module: &str| {
        let found = HOST.iter().position(|known| *known == module);
        found.unwrap_or_else(|| panic!("module '{module}' has no place in the order of the host: tests/layout.rs"))
    };
    for (from, targets) in arrows(&root().join("host/src")) {
        for (to, file) in targets {
            assert!(place(&from) < place(&to), "'{from}' uses '{to}', which stands above it: {}", file.display());
        }
    }
}

fn folders_of_net_make_no_circle() {
    let mut arrows = arrows(&root().join("net/src"));
    arrows.remove("lib");
    // What uses nothing that is left is taken away, until nothing is left.
    while !arrows.is_empty() {
        let left: BTreeSet<String> = arrows.keys().cloned().collect();
        let before = left.len();
        arrows.retain(|_, targets| targets.keys().any(|to| left.contains(to)));
        assert!(arrows.len() < before, "a circle among: {:?}", arrows.keys());
    }
}

fn net_knows_neither_wasmtime_nor_axum() {
    let manifest = std::fs::read_to_string(root().join("net/Cargo.toml")).expect("read");
    assert!(!manifest.contains("wasmtime") && !manifest.contains("axum"), "{manifest}");
}

fn only_the_sandbox_knows_wasmtime() {
    for path in sources(&root().join("host/src")) {
        let inside = path.components().any(|part| part.as_os_str() == "sandbox");
        assert!(inside || !code(&path).contains("wasmtime::"), "{}", path.display());
    }
}

/// The texts in quotes of a line.
fn texts(line: &str) -> impl Iterator<Item = &str> {
    line.split('"').skip(1).step_by(2)
}

fn the_host_knows_no_plugin_by_name() {
    let entries = std::fs::read_dir(root().join("plugins")).expect("plugins").flatten();
    let plugins: Vec<String> = entries.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
    let files = sources(&root().join("host/src"));
    for path in files.iter().filter(|path| !path.ends_with("tests.rs") && !path.iter().any(|part| part == "tests")) {
        for line in code(path).lines() {
            let mut words = texts(line).flat_map(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_'));
            let known = words.find(|word| plugins.iter().any(|plugin| plugin == word));
            assert!(known.is_none(), "{known:?} in {}: {line}", path.display());
        }
    }
}

fn no_file_has_more_than_500_lines() {
    for folder in ["host", "net", "sdk", "plugins", "tests", "bench", "fuzz"] {
        for path in sources(&root().join(folder)) {
            let lines = std::fs::read_to_string(&path).expect("read").lines().count();
            assert!(lines <= 500, "{} has {lines} lines", path.display());
        }
    }
}
