//! What the documentation says of settings, options and commands is what the program has.

use std::path::Path;
use std::process::Output;

use libtest_mimic::Trial;
use serde_json::Value;

use crate::support::server::command;
use crate::support::{plugins, root};
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("docs":
        every_setting_has_its_row,
        every_option_has_its_row,
        every_link_leads_to_a_file,
        every_page_is_linked_from_the_readme,
        every_test_that_the_threats_name_is_there,
    )
}

pub fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The commands of a page's shell blocks.
pub fn commands(page: &str) -> Vec<String> {
    let mut inside = false;
    let mut commands = vec![];
    for line in page.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside => commands.push(command.to_owned()),
            _ => {}
        }
    }
    commands
}

fn scouter(arguments: &[&str]) -> Output {
    let cache = std::path::Path::new(crate::support::scouter()).with_file_name("plugin-cache");
    let mut command = command();
    command.env("SCOUTER_PLUGIN_DIR", plugins()).env("SCOUTER_CACHE_DIR", cache);
    let output = command.args(arguments).output().expect("runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Names in back quotes in the first cell of the rows of a page's tables.
fn rows(page: &str) -> Vec<String> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    cells
        .flat_map(|cell| cell.split('`').map(str::to_owned))
        .filter(|name| name.contains(|c: char| c.is_alphanumeric()))
        .collect()
}

fn every_setting_has_its_row() {
    let help = String::from_utf8(scouter(&["serve", "--help"]).stdout).expect("UTF-8");
    // Lines are wrapped anywhere.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let variables: Vec<&str> =
        help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().expect("a name")).collect();
    assert!(variables.len() > 20, "{help}");
    let rows = rows(&page("docs/settings.md"));
    for variable in &variables {
        assert!(rows.iter().any(|row| row == variable), "docs/settings.md has no row for {variable}");
    }
    for row in rows.iter().filter(|row| row.starts_with("SCOUTER_")) {
        // Older names stand beside the newer ones.
        let known = variables.contains(&row.as_str()) || row == "SCOUTER_MAX_THREAD_COUNT";
        assert!(known, "docs/settings.md has {row}, which is no setting");
    }
}

fn every_option_has_its_row() {
    let list: Value = serde_json::from_slice(&scouter(&["plugins", "--json"]).stdout).expect("JSON");
    let text = page("docs/tests.md");
    for plugin in list.as_array().expect("a list") {
        let name = plugin["name"].as_str().expect("a name");
        let section = text.split("\n## ").find(|section| section.lines().next() == Some(name));
        let rows = rows(section.unwrap_or_else(|| panic!("docs/tests.md has no section {name}")));
        let options: Vec<&String> = plugin["options"]["properties"].as_object().expect("options").keys().collect();
        for option in &options {
            assert!(rows.contains(option), "docs/tests.md, {name}: no row for {option}");
        }
        for row in &rows {
            assert!(options.contains(&row), "docs/tests.md, {name}: {row} is no option");
        }
    }
}

fn markdown() -> Vec<String> {
    let docs = std::fs::read_dir(root().join("docs")).expect("a folder");
    let names = docs.map(|entry| format!("docs/{}", entry.expect("a file").file_name().display()));
    let mut pages: Vec<String> =
        names.filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "md")).collect();
    pages.extend(["README.md".to_owned(), "bench/README.md".to_owned()]);
    pages
}

fn every_link_leads_to_a_file() {
    for name in markdown() {
        let text = page(&name);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            let path = root().join(&name).with_file_name(file);
            assert!(file.is_empty() || path.exists(), "{name}: no file {link}");
        }
    }
}

fn every_page_is_linked_from_the_readme() {
    let readme = page("README.md");
    assert!(readme.lines().count() < 200, "README.md is to be read in one sitting");
    // Pages that belong to another page are linked there.
    let parts = ["docs/limits.md"];
    for name in markdown().into_iter().filter(|name| name.starts_with("docs/") && !parts.contains(&name.as_str())) {
        assert!(readme.contains(&format!("]({name})")), "README.md does not lead to {name}");
    }
}

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            sources(&entry, text);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&entry).expect("text"));
        }
    }
}

/// `lab::ping::a_name`, or the beginning of a name with `…`.
fn every_test_that_the_threats_name_is_there() {
    let mut text = String::new();
    for folder in ["tests", "host/src", "net/src", "plugins", "sdk/src"] {
        sources(&root().join(folder), &mut text);
    }
    let page = page("docs/security.md");
    let quoted = page.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains("::") || quoted.starts_with('…'));
    let mut seen = 0;
    for name in quoted {
        let last = name.rsplit("::").next().expect("a part").trim_start_matches('…');
        let (beginning, whole) = match last.strip_suffix('…') {
            Some(beginning) => (beginning, false),
            None => (last, true),
        };
        // A module alone.
        if beginning.is_empty() || !beginning.contains('_') {
            continue;
        }
        let wanted = format!("fn {beginning}{}", if whole { "(" } else { "" });
        assert!(text.contains(&wanted), "docs/security.md names {name}, and there is no such test");
        seen += 1;
    }
    assert!(seen > 30, "{seen}");
}
