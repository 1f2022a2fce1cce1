//! The command line and the settings.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::server::{SECRET, Server, command};
use crate::support::{self, hostile, plugins};
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("cli":
        run_prints_json_into_a_pipe_and_says_by_its_status_how_it_went,
        run_prints_a_table_when_asked,
        mistakes_are_explained,
        a_wrong_setting_names_variable_value_and_what_is_allowed,
        older_names_of_settings_work,
        help_shows_every_setting_and_no_secret,
        a_server_takes_as_many_descriptors_as_it_may_have,
        health_asks_the_server_that_runs,
        sighup_reads_the_secrets_again,
        a_signal_during_the_start_is_acted_upon_after_it,
        secrets_come_from_a_file_and_short_ones_are_warned_about,
        plugins_lists_types_and_options,
        untrusted_output_is_escaped_in_the_terminal,
    )
}

fn scouter(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let cache = std::path::Path::new(crate::support::scouter()).with_file_name("plugin-cache");
    let mut command = command();
    command.env("SCOUTER_PLUGIN_DIR", plugins()).env("SCOUTER_CACHE_DIR", cache).envs(variables.iter().copied());
    command.args(arguments).output().expect("runs")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run_prints_json_into_a_pipe_and_says_by_its_status_how_it_went() {
    let server = Server::start(&[]);
    let url = format!("url={}", server.url("/healthz"));
    let good =
        scouter(&["run", "http_request", &url, "keep_body=10", "id=mine"], &[("SCOUTER_TARGETS_ALLOW", "127.0.0.1")]);
    let test: Value = serde_json::from_str(&out(&good)).expect("JSON");
    assert_eq!(
        (good.status.code(), &test["result"]["status"], &test["result"]["body"], &test["id"]),
        (Some(0), &json!(200), &json!("ok\n"), &json!("mine"))
    );
    let refused = scouter(&["run", "http_request", &url], &[]);
    let test: Value = serde_json::from_str(&out(&refused)).expect("JSON");
    assert_eq!((refused.status.code(), &test["failed"]), (Some(1), &json!(true)));
    assert!(test["message"].as_str().is_some_and(|m| m.contains("loopback")), "{test}");
}

fn run_prints_a_table_when_asked() {
    let server = Server::start(&[]);
    let url = format!("url={}", server.url("/healthz"));
    let table = scouter(&["run", "http_request", &url, "--table", "--targets-allow", "127.0.0.1"], &[]);
    let text = out(&table);
    assert!(text.contains("status              200") && text.ends_with("ok\n"), "{text}");
}

fn mistakes_are_explained() {
    for (arguments, message) in [
        (
            &["run", "pink", "dst=x"][..],
            "there is no test type 'pink'; there is: browser_request, dns_lookup, dns_traceroute, http_request, ping, traceroute",
        ),
        (&["run", "ping"], "Required test option of 'dst' was not given."),
        (&["run", "ping", "dst"], "'dst' is not an option: write it as option=value"),
        (&["run", "ping", "dst=x", "cuont=1"], "Did you mean 'count'?"),
        (&["run", "ping", "dst=x", "count=many"], "Provided value of 'many' for option 'count' is not allowed."),
    ] {
        let output = scouter(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(err(&output).contains(message), "{arguments:?}: {}", err(&output));
        assert_eq!(out(&output), "", "{arguments:?}");
    }
}

fn a_wrong_setting_names_variable_value_and_what_is_allowed() {
    let secret = ("SCOUTER_API_SECRET", "a-secret-for-the-tests");
    for (name, value, allowed) in [
        ("SCOUTER_MAX_TEST_COUNT", "many", "invalid digit"),
        ("SCOUTER_MAX_TEST_COUNT", "0", "1..=100000"),
        ("SCOUTER_MAX_TEST_COUNT", "-3", "invalid digit"),
        ("SCOUTER_MAX_PROCESS_COUNT", "0", "1..=100000"),
        ("SCOUTER_MAX_THREAD_COUNT", "0", "1..=100000"),
        ("UWSGI_CACHE_ITEMS", "few", "invalid digit"),
        ("API_PORT", "65536", "0..=65535"),
        ("SCOUTER_LISTEN", "localhost", "invalid IP address"),
        ("SCOUTER_TARGETS_ALLOW", "10.0.0.0/33", "neither an address, a CIDR block, a name"),
        ("SCOUTER_TARGETS_DENY", "8.8.8.8,,", "neither an address, a CIDR block, a name"),
        ("SCOUTER_TARGETS_DENY", "::ffff:10.0.0.0/95", "write the IPv4 block"),
        ("SCOUTER_LOG_FORMAT", "xml", "text, json"),
        ("SCOUTER_LOG", "verbose", "off, error, warn, info, debug, trace"),
        ("SCOUTER_LOG", "info,access=loud", "module=level"),
    ] {
        let output = scouter(&["serve"], &[secret, (name, value)]);
        let text = err(&output);
        assert_eq!(output.status.code(), Some(2), "{name}={value}: {text}");
        let shown = value.split(',').find(|part| text.contains(&format!("'{part}'")));
        assert!(text.contains(name) && shown.is_some() && text.contains(allowed), "{name}={value}: {text}");
    }
    for (secret, message) in [(None, "no API secret"), (Some(""), "empty secret"), (Some("x,,y"), "empty secret")] {
        let variables: Vec<_> = secret.map(|value| ("SCOUTER_API_SECRET", value)).into_iter().collect();
        let output = scouter(&[], &variables);
        assert_eq!(output.status.code(), Some(2));
        assert!(err(&output).contains(message) && err(&output).contains("SCOUTER_API_SECRET"), "{}", err(&output));
    }
    // As compose files and manifests leave them.
    let empty = ["SCOUTER_TARGETS_ALLOW", "SCOUTER_TLS_CERT", "SCOUTER_TLS_KEY", "SCOUTER_LISTEN", "SCOUTER_MMDB_PATH"];
    let settings: Vec<_> = empty.iter().map(|name| (*name, "")).chain([("SCOUTER_MAX_PROCESS_COUNT", "")]).collect();
    let server =
        Server::start(&[&settings[..], &[("SCOUTER_MAX_THREAD_COUNT", "4"), ("SCOUTER_BROWSER_IDLE", "")]].concat());
    assert_eq!(server.get("/api/v1.0/status").body["worker_status"].as_array().map(Vec::len), Some(4));
    drop(server);
    let output = scouter(&[], &[secret, ("SCOUTER_PLUGIN_DIR", "/nowhere")]);
    assert!(err(&output).contains("plugin folder '/nowhere' (SCOUTER_PLUGIN_DIR)"), "{}", err(&output));
}

fn older_names_of_settings_work() {
    let server = Server::hostile(&[
        ("SCOUTER_MAX_THREAD_COUNT", "3"),
        ("UWSGI_CACHE_BLOCKSIZE", "5000"),
        ("UWSGI_WORKERS", "1"),
        // The old program's own: without effect here yet, and no reason not to start.
        ("MMDB_LICENSE_KEY", "x"),
        ("BUP_PROXY_TTL", "300"),
    ]);
    assert_eq!(server.get("/api/v1.0/status").body["worker_status"].as_array().map(Vec::len), Some(3));
    let test = server.test("hostile", &json!({"do": "return", "n": 6000}));
    assert!(test["message"].as_str().is_some_and(|m| m.contains("5000 bytes")), "{test}");
}

fn help_shows_every_setting_and_no_secret() {
    let output = scouter(&["--help"], &[("SCOUTER_API_SECRET", "do-not-show-this-secret")]);
    let help = out(&output);
    for name in [
        "SCOUTER_API_SECRET",
        "SCOUTER_API_SECRET_FILE",
        "SCOUTER_LISTEN",
        "API_PORT",
        "UWSGI_WORKERS",
        "SCOUTER_MAX_TEST_COUNT",
        "SCOUTER_MAX_PROCESS_COUNT",
        "SCOUTER_MAX_QUEUE",
        "SCOUTER_MAX_QUEUE_BYTES",
        "SCOUTER_MAX_RECEIPTS",
        "SCOUTER_MAX_RECEIPT_BYTES",
        "SCOUTER_PLUGIN_DIR",
        "SCOUTER_CACHE_DIR",
        "SCOUTER_TARGETS_ALLOW",
        "SCOUTER_TARGETS_DENY",
        "SCOUTER_TEST_TIMEOUT",
        "SCOUTER_LOG",
    ] {
        assert!(help.contains(&format!("[env: {name}")), "{name} is missing:\n{help}");
    }
    assert!(help.contains("[default: 8000]") && !help.contains("do-not-show"), "{help}");
}

fn plugins_lists_types_and_options() {
    let text = out(&scouter(&["plugins"], &[]));
    assert!(
        text.contains("ping 1.0.0") && text.contains("payload_size") && text.contains("a whole number from 0 to 1472"),
        "{text}"
    );
    let json: Value = serde_json::from_str(&out(&scouter(&["plugins", "--json"], &[]))).expect("JSON");
    let names = json.as_array().expect("a list").iter().map(|plugin| &plugin["name"]);
    assert!(names.into_iter().any(|name| name == "ping"), "{json}");
}

fn a_server_takes_as_many_descriptors_as_it_may_have() {
    let mut command = Command::new("sh");
    super::support::server::clean(&mut command);
    command.args(["-c", &format!("ulimit -Sn 200; ulimit -Hn 900; exec {}", support::scouter())]);
    let server = Server::spawn(command, &[], None);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).expect("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    assert_eq!(line.split_whitespace().nth(3), Some("900"), "{line}");
}

fn health_asks_the_server_that_runs() {
    let server = Server::start(&[]);
    let port = server.address.port().to_string();
    assert!(scouter(&["health", "--port", &port], &[]).status.success());
    assert!(scouter(&["health"], &[("API_PORT", &port), ("SCOUTER_LISTEN", "127.0.0.1,::")]).status.success());
    drop(server);
    let dead = scouter(&["health", "--port", &port], &[]);
    assert!(!dead.status.success() && err(&dead).contains("does not answer"), "{}", err(&dead));
}

/// With an empty cache every plugin is compiled, which takes a second or more: the first of them is logged early.
fn a_signal_during_the_start_is_acted_upon_after_it() {
    let cache = tempfile::tempdir().expect("a folder");
    let mut command = command();
    command.env("SCOUTER_PLUGIN_DIR", plugins()).env("SCOUTER_CACHE_DIR", cache.path());
    command.env("SCOUTER_API_SECRET", SECRET).env("SCOUTER_LISTEN", "127.0.0.1").env("API_PORT", "0");
    let mut server = command.stderr(Stdio::piped()).spawn().expect("the server starts");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).expect("a process"));
    let lines = BufReader::new(server.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let mut listens = false;
    for (number, line) in lines.enumerate() {
        if number == 0 {
            assert!(!line.contains("listening"), "too late: {line}");
            nix::sys::signal::kill(pid, Signal::SIGHUP).expect("sent");
            nix::sys::signal::kill(pid, Signal::SIGTERM).expect("sent");
        }
        listens |= line.contains("listening");
    }
    assert_eq!((server.wait().expect("waited").code(), listens), (Some(0), true));
}

fn sighup_reads_the_secrets_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("secrets");
    let write = |text: &str| std::fs::write(&file, text).expect("written");
    write("the-first-of-the-secrets\n");
    let mut command = command();
    command.env_remove("SCOUTER_API_SECRET");
    let path = file.to_str().expect("UTF-8");
    let server = Server::spawn_with(command, &[("SCOUTER_API_SECRET_FILE", path)], None, None);
    let works = |secret: &str| server.raw("GET", "/api/v1.0/status", &[("authorization", secret)], None).status == 200;
    assert!(works("the-first-of-the-secrets") && !works("the-second-of-the-secrets"));
    for (text, first, second) in [
        ("the-first-of-the-secrets\nthe-second-of-the-secrets\n", true, true),
        ("the-second-of-the-secrets\n", false, true),
        // A file that cannot be used changes nothing.
        ("", false, true),
    ] {
        write(text);
        let before = server.log().matches("SIGHUP").count();
        server.signal(nix::sys::signal::Signal::SIGHUP);
        support::until("it is read", || server.log().matches("SIGHUP").count() > before);
        assert_eq!(
            (works("the-first-of-the-secrets"), works("the-second-of-the-secrets")),
            (first, second),
            "{text:?}"
        );
    }
    assert!(!server.log().contains("of-the-secrets"));
}

fn secrets_come_from_a_file_and_short_ones_are_warned_about() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "a-secret-from-a-file\r\nshort\n").expect("written");
    let mut command = command();
    command.env("SCOUTER_API_SECRET_FILE", file.path());
    let server = Server::spawn_with(command, &[], None, None);
    for (secret, status) in [("a-secret-from-a-file", 200), ("short", 200), ("", 403), ("file", 403)] {
        let answer = server.raw("GET", "/api/v1.0/status", &[("authorization", secret)], None);
        assert_eq!(answer.status, status, "{secret:?}");
    }
    assert!(
        server.log().contains("shorter than 16 characters") && !server.log().contains("from-a-file"),
        "{}",
        server.log()
    );
}

/// An escape sequence, a C1 control, an override of direction, line ends.
fn untrusted_output_is_escaped_in_the_terminal() {
    let said = "a\u{1b}[2Jb\u{9b}31mc\u{202e}d\r\ne";
    let acts = |text: &str| text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}');
    let folder = hostile();
    let variables = [("SCOUTER_PLUGIN_DIR", folder.to_str().expect("UTF-8"))];
    let option = format!("say={said}");
    for (form, shown) in
        [("--table", r"a\u{1b}[2Jb\u{9b}31mc\u{202e}d\r\ne"), ("--json", r"a\u001b[2Jb\u009b31mc\u202ed\r\ne")]
    {
        let output = scouter(&["run", "hostile", "do=say", &option, form], &variables);
        let text = out(&output);
        assert!(!acts(&text) && text.contains(shown), "{form}: {text:?}");
    }
    let refused = scouter(&["run", "hostile", &format!("x{said}=1")], &variables);
    assert!(!acts(&err(&refused)) && err(&refused).contains(r"\u{202e}"), "{:?}", err(&refused));
    // A summary is text of the plugin's author.
    let mut wasm = std::fs::read(folder.join("hostile.wasm")).expect("read");
    let summary = b"Attacks the sandbox";
    let at = (0..wasm.len()).find(|at| wasm[*at..].starts_with(summary)).expect("the summary");
    wasm[at..at + summary.len()].copy_from_slice("Attacks \u{202e}-xobdnas".as_bytes());
    let changed = tempfile::tempdir().expect("a folder");
    std::fs::write(changed.path().join("hostile.wasm"), wasm).expect("written");
    let variables = [("SCOUTER_PLUGIN_DIR", changed.path().to_str().expect("UTF-8"))];
    for form in [&["plugins"][..], &["plugins", "--json"]] {
        let text = out(&scouter(form, &variables));
        assert!(!acts(&text) && text.contains("xobdnas"), "{form:?}: {text:?}");
    }
}
