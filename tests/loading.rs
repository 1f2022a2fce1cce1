//! Plugin files and caches that are not what they seem (threats 8, 12–14, 16–18): the rest is served all the same.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::Trial;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::server::Server;
use crate::support::{hostile, hostile_that, plugins, root, threads};
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("loading":
        a_bad_file_is_refused_and_the_rest_is_served,
        a_schema_that_never_ends_is_refused,
        the_first_of_a_name_wins,
        a_damaged_cache_entry_is_compiled_again,
        a_second_start_loads_every_plugin_in_100_ms,
        without_a_cache_folder_it_starts_all_the_same,
        describe_may_call_no_import,
        describe_computes_where_guests_do,
        what_is_offered_is_what_the_linker_has,
        a_cache_that_others_could_have_written_is_not_used,
        a_key_that_others_may_read_is_made_anew,
        what_no_start_uses_leaves_the_cache,
    )
}

fn copy(folder: &Path, from: &Path, name: &str) {
    fs::copy(from, folder.join(name)).expect("copied");
}

fn start(folder: &Path, cache: &Path) -> Server {
    Server::start(&[
        ("SCOUTER_PLUGIN_DIR", folder.to_str().expect("UTF-8")),
        ("SCOUTER_CACHE_DIR", cache.to_str().expect("UTF-8")),
    ])
}

fn served(server: &Server) -> Vec<String> {
    let body = server.get("/api/v1.0/plugins").body;
    body["plugins"].as_array().expect("a list").iter().map(|p| p["name"].as_str().expect("a name").to_owned()).collect()
}

fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("a component")
}

/// The hostile plugin with another schema of its options.
fn with_schema(schema: &str) -> Vec<u8> {
    let mut wasm = fs::read(hostile().join("hostile.wasm")).expect("read");
    let own = fs::read(root().join("tests/hostile/options.json")).expect("read");
    let at = wasm.windows(own.len()).position(|window| window == own).expect("its schema");
    wasm[at..at + own.len()].copy_from_slice(format!("{schema:4096}").as_bytes());
    wasm
}

fn a_schema_that_never_ends_is_refused() {
    let (folder, cache) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let dir = folder.path();
    let definitions: Vec<String> = (0..30)
        .map(|n| {
            let next = format!("{{\"$ref\":\"#/$defs/{}\"}}", n + 1);
            format!("\"{n}\":{{\"allOf\":[{next},{next}]}}")
        })
        .collect();
    let doubling = format!(
        "{{\"type\":\"object\",\"properties\":{{\"do\":{{\"$ref\":\"#/$defs/0\"}}}},\"$defs\":{{{},\"30\":{{\"type\":\"string\"}}}}}}",
        definitions.join(",")
    );
    let backtracking = r#"{"type":"object","properties":{"do":{"pattern":"^(a+)+(?=b)$"}}}"#;
    let itself = r##"{"type":"object","properties":{"do":{"$ref":"#"}}}"##;
    let remote = r#"{"type":"object","properties":{"do":{"$ref":"http://127.0.0.1/schema"}}}"#;
    // What a generator of another language writes, and its definitions in the API's document.
    let pydantic = r##"{"$defs":{"Count":{"maximum":9,"minimum":1,"type":"integer"}},"type":"object","required":["do"],
        "properties":{"do":{"type":"string"},"n":{"anyOf":[{"$ref":"#/$defs/Count"},{"type":"null"}],"default":null}}}"##;
    let schemas = [
        ("doubling", &*doubling),
        ("backtracking", backtracking),
        ("itself", itself),
        ("remote", remote),
        ("pydantic", pydantic),
    ];
    for (name, schema) in schemas {
        fs::write(dir.join(format!("{name}.wasm")), with_schema(schema)).expect("written");
    }
    let server = start(dir, cache.path());
    assert_eq!(served(&server), ["pydantic"]);
    let refused = server.get("/api/v1.0/plugins").body["refused"].to_string();
    for reason in [
        "its options schema has more than 20000 parts with its references expanded",
        "its options schema is not a usable JSON Schema",
        "its options schema refers to itself by '#'",
        "its options schema has the reference 'http://127.0.0.1/schema', which leads to no schema inside it",
    ] {
        assert!(refused.contains(reason), "{reason}: {refused}");
    }
    for (n, failed) in
        [(json!("3"), false), (json!(3.0), false), (json!(null), false), (json!("10"), true), (json!(true), true)]
    {
        let test = server.test("pydantic", &json!({"do": "nothing", "n": n}));
        assert_eq!(test["failed"], json!(failed), "{n}: {test}");
    }
    let document = server.raw("GET", "/openapi.json", &[], None).body;
    let n = &document["components"]["schemas"]["pydantic_options"]["properties"]["n"];
    assert_eq!(n["anyOf"][0]["$ref"], "#/components/schemas/pydantic_options.Count", "{n}");
    assert_eq!(document["components"]["schemas"]["pydantic_options.Count"]["maximum"], json!(9));
}

fn a_bad_file_is_refused_and_the_rest_is_served() {
    let (folder, cache) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let dir = folder.path();
    copy(dir, &plugins().join("ping.wasm"), "ping.wasm");
    let ping = fs::read(plugins().join("ping.wasm")).expect("read");
    fs::write(dir.join("cut.wasm"), &ping[..ping.len() / 2]).expect("written");
    fs::write(dir.join("empty.wasm"), b"").expect("written");
    fs::write(dir.join("text.wasm"), b"(component)").expect("written");
    fs::write(dir.join("PING.wasm"), &ping).expect("written");
    fs::write(dir.join("pıng.wasm"), &ping).expect("written");
    fs::write(dir.join("module.wasm"), component("(module)")).expect("written");
    fs::write(dir.join("other.wasm"), component("(component)")).expect("written");
    fs::write(
        dir.join("wants.wasm"),
        component(r#"(component (import "evil:host/root@1.0.0" (instance (export "f" (func)))))"#),
    )
    .expect("written");
    fs::write(
        dir.join("tables.wasm"),
        component("(component (core module $m (table 30000 funcref)) (core instance (instantiate $m)))"),
    )
    .expect("written");
    let instances: String = (0..40).map(|_| "(core instance (instantiate $m))").collect();
    fs::write(dir.join("instances.wasm"), component(&format!("(component (core module $m) {instances})")))
        .expect("written");
    symlink(dir.join("ping.wasm"), dir.join("link.wasm")).expect("linked");
    assert!(std::process::Command::new("mkfifo").arg(dir.join("fifo.wasm")).status().expect("runs").success());
    fs::create_dir(dir.join("folder.wasm")).expect("made");
    let big = fs::File::create(dir.join("big.wasm")).expect("made");
    big.set_len(33 << 20).expect("grown");
    fs::write(dir.join("notes.txt"), b"not a plugin").expect("written");

    let started = Instant::now();
    let server = start(dir, cache.path());
    assert!(started.elapsed() < Duration::from_mins(1), "{:?}", started.elapsed());
    assert_eq!(served(&server), ["ping"]);
    let body = server.get("/api/v1.0/plugins").body;
    let refused = |file: &str| -> String {
        let all = body["refused"].as_array().expect("a list");
        let entry =
            all.iter().find(|entry| entry["file"] == file).unwrap_or_else(|| panic!("{file} is not listed: {body}"));
        entry["reason"].as_str().expect("a reason").to_owned()
    };
    for (file, reason) in [
        ("PING.wasm", "no name of a test type"),
        ("pıng.wasm", "no name of a test type"),
        ("link.wasm", "links are not followed"),
        ("fifo.wasm", "not a regular file"),
        ("folder.wasm", "not a regular file"),
        ("big.wasm", "larger than 32 MiB"),
        ("wants.wasm", "evil:host/root@1.0.0"),
        ("other.wasm", "not a scouter:probe plugin"),
        ("tables.wasm", "exceeds the limit of 20000"),
        ("instances.wasm", "exceeds the configured maximum of 32"),
    ] {
        assert!(refused(file).contains(reason), "{file}: {}", refused(file));
    }
    for file in ["cut.wasm", "empty.wasm", "text.wasm", "module.wasm"] {
        assert!(!refused(file).is_empty());
    }
    assert_eq!(body["refused"].as_array().map(Vec::len), Some(14), "{body}");
}

fn the_first_of_a_name_wins() {
    let (folder, cache) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    copy(folder.path(), &hostile().join("hostile.wasm"), "ping.wasm");
    let both = format!("{},{}", plugins().display(), folder.path().display());
    let server = start(Path::new(&both), cache.path());
    let body = server.get("/api/v1.0/plugins").body;
    let ping = body["plugins"].as_array().expect("a list").iter().find(|p| p["name"] == "ping").expect("ping");
    assert_eq!(ping["options"]["required"], json!(["dst"]), "the built-in one is served");
    assert!(body["refused"][0]["reason"].as_str().is_some_and(|r| r.contains("is loaded already")), "{body}");
}

fn a_damaged_cache_entry_is_compiled_again() {
    let (folder, cache) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    copy(folder.path(), &hostile().join("hostile.wasm"), "hostile.wasm");
    drop(start(folder.path(), cache.path()));
    let entry = fs::read_dir(cache.path())
        .expect("read")
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "cwasm"))
        .expect("an entry");
    assert_eq!(fs::metadata(cache.path().join("key")).expect("a key").permissions().mode() & 0o777, 0o600);
    let whole = fs::read(&entry).expect("read");
    let len = whole.len();
    let damages: Vec<(String, Vec<u8>)> = [0, 31, 32, 100, len / 2, len - 1]
        .into_iter()
        .map(|at| {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            (format!("byte {at} of {len}"), flipped)
        })
        .chain([("cut".into(), whole[..len / 2].to_vec()), ("empty".into(), vec![])])
        .collect();
    for (what, damaged) in damages {
        fs::write(&entry, damaged).expect("written");
        let server = start(folder.path(), cache.path());
        assert_eq!(server.test("hostile", &json!({"do": "nothing"}))["failed"], json!(false), "{what}");
        assert!(server.log().contains("plugin compiled"), "{what}: it was not compiled again\n{}", server.log());
        assert!(fs::read(&entry).expect("read").len() > 1000, "{what}: written anew");
    }
    // Compiled code where wasm belongs is machine code from a stranger.
    fs::write(folder.path().join("code.wasm"), &whole[32..]).expect("written");
    let server = start(folder.path(), cache.path());
    let body = server.get("/api/v1.0/plugins").body;
    assert!(body["refused"][0]["reason"].as_str().is_some_and(|r| r.contains("machine code")), "{body}");
}

fn a_second_start_loads_every_plugin_in_100_ms() {
    let cache = TempDir::new().expect("a folder");
    drop(start(&plugins(), cache.path()));
    let server = start(&plugins(), cache.path());
    let log = server.log();
    assert!(!log.contains("plugin compiled"), "{log}");
    let ms = log.lines().find(|line| line.contains(" plugins ")).and_then(|line| line.split("ms=").nth(1));
    let ms: u64 = ms.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect("a time");
    // The promise is 100 ms for an optimised build (bench/); this one is not optimised, and others run beside it.
    assert!(ms < 2000, "{ms} ms");
}

fn without_a_cache_folder_it_starts_all_the_same() {
    let cache = TempDir::new().expect("a folder");
    fs::write(cache.path().join("file"), b"in the way").expect("written");
    let server = start(&hostile(), &cache.path().join("file").join("below"));
    assert_eq!(served(&server), ["hostile"]);
    assert!(server.log().contains("SCOUTER_CACHE_DIR"), "{}", server.log());
    let _: Value = server.test("hostile", &json!({"do": "nothing"}));
}

fn reason(server: &Server, file: &str) -> String {
    let body = server.get("/api/v1.0/plugins").body;
    let all = body["refused"].as_array().expect("a list");
    let entry = all.iter().find(|entry| entry["file"] == file).unwrap_or_else(|| panic!("{file}: {body}"));
    entry["reason"].as_str().expect("a reason").to_owned()
}

fn describe_may_call_no_import() {
    let (folder, cache) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    fs::write(folder.path().join("curious.wasm"), hostile_that("imports")).expect("written");
    let server = start(folder.path(), cache.path());
    let reason = reason(&server, "curious.wasm");
    assert!(reason.contains("describe calls 'scouter:probe/resolver@1.0.0#nameservers'"), "{reason}");
}

/// A `describe` that never ends has the CPU time of a run, on a thread that has no capabilities.
fn describe_computes_where_guests_do() {
    let (folder, cache) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    fs::write(folder.path().join("endless.wasm"), hostile_that("spins")).expect("written");
    let server = start(folder.path(), cache.path());
    let reason = reason(&server, "endless.wasm");
    // Guests have a low priority: on a busy machine 10 s may hold less than 1 s of CPU time for them.
    let ended = ["it used more than 1000 ms of CPU time", "it takes longer than 10 s"];
    assert!(ended.iter().any(|end| reason.contains(end)), "{reason}");
    let busy: Vec<_> = threads(server.pid()).into_iter().filter(|thread| thread.cpu >= 20).collect();
    assert!(busy.iter().any(|thread| thread.name == "guest"), "{busy:?}");
    assert!(busy.iter().all(|thread| thread.capabilities == 0), "{busy:?}");
}

fn what_is_offered_is_what_the_linker_has() {
    let (folder, cache) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let report = |version: &str, function: &str| {
        let import = format!("scouter:probe/report@{version}");
        component(&format!(
            r#"(component (import "{import}" (instance (export "{function}" (func (param "result" string))))))"#
        ))
    };
    // A later version of the same interface is satisfied, as far as its functions are there.
    for (name, version, function, expected) in [
        ("patch", "1.0.7", "progress", "not a scouter:probe plugin"),
        ("minor", "1.1.0", "progress", "not a scouter:probe plugin"),
        ("more", "1.1.0", "whole", "whole"),
        ("major", "2.0.0", "progress", "scouter:probe/report@2.0.0"),
    ] {
        fs::write(folder.path().join(format!("{name}.wasm")), report(version, function)).expect("written");
        let server = start(folder.path(), cache.path());
        let reason = reason(&server, &format!("{name}.wasm"));
        assert!(reason.contains(expected), "{name}: {reason}");
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
}

fn a_cache_that_others_could_have_written_is_not_used() {
    let (folder, cache) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    copy(folder.path(), &hostile().join("hostile.wasm"), "hostile.wasm");
    let entries = || fs::read_dir(cache.path()).expect("read").count();
    let refuses = |why: &str| {
        let server = start(folder.path(), cache.path());
        assert_eq!(served(&server), ["hostile"]);
        assert!(
            server.log().contains("compiled plugins are not cached") && server.log().contains(why),
            "{}",
            server.log()
        );
    };
    mode(cache.path(), 0o777);
    refuses("others may write to it (mode 0777)");
    assert_eq!(entries(), 0, "nothing is put there");
    mode(cache.path(), 0o700);
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(cache.path(), Some(65_534), None).expect("given away");
        refuses("it belongs to user 65534");
        assert_eq!(entries(), 0, "nothing is put there");
        std::os::unix::fs::chown(cache.path(), Some(0), None).expect("taken back");
    }
    drop(start(folder.path(), cache.path()));
    assert_eq!(entries(), 2, "a key and an entry");
}

fn a_key_that_others_may_read_is_made_anew() {
    let (folder, cache) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    copy(folder.path(), &hostile().join("hostile.wasm"), "hostile.wasm");
    drop(start(folder.path(), cache.path()));
    let path = cache.path().join("key");
    let key = fs::read(&path).expect("a key");
    mode(&path, 0o644);
    let server = start(folder.path(), cache.path());
    assert_ne!(fs::read(&path).expect("a key"), key);
    assert_eq!(fs::metadata(&path).expect("a key").permissions().mode() & 0o777, 0o600);
    assert!(server.log().contains("plugin compiled"), "what the old key signed is not used: {}", server.log());
    let server = start(folder.path(), cache.path());
    assert!(!server.log().contains("plugin compiled"), "{}", server.log());
}

fn what_no_start_uses_leaves_the_cache() {
    let (folder, cache) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    copy(folder.path(), &hostile().join("hostile.wasm"), "hostile.wasm");
    drop(start(folder.path(), cache.path()));
    let age = |name: &Path, days: u64| {
        let file = fs::File::options().create(true).append(true).open(name).expect("opened");
        file.set_modified(SystemTime::now() - Duration::from_hours(24 * days)).expect("set");
    };
    let used = fs::read_dir(cache.path()).expect("read").flatten().map(|entry| entry.path());
    let used = used.into_iter().find(|path| path.extension().is_some_and(|e| e == "cwasm")).expect("an entry");
    let file = |name: &str| cache.path().join(name);
    for (path, days) in
        [(used.clone(), 31), (file("old.cwasm"), 31), (file("new.cwasm"), 29), (file(".newx"), 2), (file("other"), 90)]
    {
        age(&path, days);
    }
    let server = start(folder.path(), cache.path());
    assert!(!server.log().contains("plugin compiled"), "{}", server.log());
    let left = |path: &Path| path.exists();
    assert!(left(&used) && left(&file("new.cwasm")) && left(&file("other")) && left(&file("key")));
    assert!(!left(&file("old.cwasm")) && !left(&file(".newx")));
}
