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
        paths_are_found_however_they_are_written,
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

/// The module of a file: the names from the root of its crate.
fn module_of(crate_root: &Path, path: &Path) -> Vec<String> {
    let inside = path.strip_prefix(crate_root).expect("inside").with_extension("");
    let mut module: Vec<String> = inside.iter().map(|part| part.to_str().expect("UTF-8").to_owned()).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
        module.pop();
    }
    module
}

/// Every path below `crate` that the code of a module names, with or without `use`, in groups, and from `super` on.
fn paths(module: &[String], code: &str) -> BTreeSet<Vec<String>> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for (at, start) in ["crate::", "super::"].iter().flat_map(|start| code.match_indices(start)) {
        // The second one of `super::super::`, or the end of another name.
        if code[..at].ends_with("super::") || code[..at].ends_with(is_name) {
            continue;
        }
        let mut rest = &code[at..];
        let mut base = module.to_vec();
        if start == "crate::" {
            base.clear();
            rest = &rest[start.len()..];
        }
        while let Some(after) = rest.strip_prefix("super::") {
            base.pop();
            rest = after;
        }
        tree(&base, rest, &mut found);
    }
    found
}

/// What a path or a group of paths names; what follows it.
fn tree<'a>(base: &[String], text: &'a str, found: &mut BTreeSet<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = tree(base, rest, found).trim_start();
            match rest.strip_prefix(',') {
                Some(more) if !more.trim_start().starts_with('}') => rest = more,
                Some(more) => return more.trim_start().strip_prefix('}').unwrap_or(more),
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path: Vec<String> = base.iter().cloned().chain([name.to_owned()]).collect();
    if let Some(more) = rest.strip_prefix("::") {
        return tree(&path, more, found);
    }
    found.insert(path);
    // `as other`, or a glob.
    let rest = rest.trim_start_matches('*');
    let renamed = rest.trim_start().strip_prefix("as ");
    renamed.map_or(rest, |name| name.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Which module uses which, and where, of those that lie next to each other in a folder of the crate.
fn arrows(crate_root: &Path, folder: &[String]) -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    let files = sources(crate_root);
    let inside = |path: &[String]| path.strip_prefix(folder).and_then(|rest| rest.first().cloned());
    let modules: BTreeSet<String> = files.iter().filter_map(|path| inside(&module_of(crate_root, path))).collect();
    let mut arrows: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for path in &files {
        let module = module_of(crate_root, path);
        let Some(from) = inside(&module) else { continue };
        for to in paths(&module, &code(path)).iter().filter_map(|path| inside(path)) {
            if to != from && modules.contains(&to) {
                arrows.entry(from.clone()).or_default().insert(to, path.clone());
            }
        }
    }
    arrows
}

fn paths_are_found_however_they_are_written() {
    let module = ["browser", "socks"].map(str::to_owned);
    let code =
        "use crate::address::{dial::{self, DialError}, query, Resolver as R};\nuse super::supervisor::ParentPipe;
        use super::super::policy::{Policy,};\nfn x() { super::errors::failure(crate::name::of(), tracing::debug) }";
    let found: Vec<String> = paths(&module, code).into_iter().map(|path| path.join("::")).collect();
    assert_eq!(
        found,
        [
            "address::Resolver",
            "address::dial::DialError",
            "address::dial::self",
            "address::query",
            "browser::errors::failure",
            "browser::supervisor::ParentPipe",
            "name::of",
            "policy::Policy",
        ]
    );
    assert_eq!(module_of(Path::new("/net/src"), Path::new("/net/src/browser/socks/mod.rs")), module);
    assert_eq!(module_of(Path::new("/net/src"), Path::new("/net/src/browser/socks/message.rs")).len(), 3);
}

fn arrows_of_the_host_point_down() {
    let place = |module: &str| {
        let found = HOST.iter().position(|known| *known == module);
        found.unwrap_or_else(|| panic!("module '{module}' has no place in the order of the host: tests/layout.rs"))
    };
    for (from, targets) in arrows(&root().join("host/src"), &[]) {
        for (to, file) in targets {
            assert!(place(&from) < place(&to), "'{from}' uses '{to}', which stands above it: {}", file.display());
        }
    }
}

fn folders_of_net_make_no_circle() {
    let net = root().join("net/src");
    let folders: BTreeSet<Vec<String>> =
        sources(&net).iter().map(|path| module_of(&net, path)).flat_map(|module| parents(&module)).collect();
    assert!(folders.len() > 5, "{folders:?}");
    for folder in folders {
        let mut arrows = arrows(&net, &folder);
        // What uses nothing that is left is taken away, until nothing is left.
        while !arrows.is_empty() {
            let left: BTreeSet<String> = arrows.keys().cloned().collect();
            let before = left.len();
            arrows.retain(|_, targets| targets.keys().any(|to| left.contains(to)));
            assert!(arrows.len() < before, "a circle in '{}': {arrows:?}", folder.join("::"));
        }
    }
}

/// The modules that it lies in; the crate itself is the first one.
fn parents(module: &[String]) -> Vec<Vec<String>> {
    (0..module.len()).map(|depth| module[..depth].to_vec()).collect()
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
