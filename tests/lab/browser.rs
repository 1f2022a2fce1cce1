//! Browsers and servers that crash (threat 54): the test reports it, and no process is left.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::pages::{DRIVERS, load, ports, server};
use super::ping::nobody;
use crate::support::lab::{Lab, Namespace};
use crate::support::server::{Server, children};
use crate::support::site::{Reply, Site, response};
use crate::support::{scouter, until};
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::browser", lab =>
        pages_know_nothing_of_each_other,
        whatever_dies_the_test_says_so_and_the_next_one_works,
        a_server_that_is_killed_leaves_nothing_behind,
        what_outlives_a_killed_supervisor_is_ended_and_removed,
        what_killed_servers_have_left_the_next_one_removes,
        four_at_once_and_no_more_than_there_are_ports,
        idle_browsers_are_stopped,
        a_host_without_a_browser_says_what_is_missing,
        without_root_chrome_keeps_its_sandbox,
        what_this_host_cannot_reach_is_not_the_targets_failure,
        a_machine_without_ipv6_has_browsers_too,
    )
}

/// Everything below a process: numbers and command lines.
fn below(pid: &str) -> Vec<(String, String)> {
    let mut all = vec![];
    for child in children(pid.parse().expect("a number")) {
        let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        all.push((child.clone(), String::from_utf8_lossy(&line).replace('\0', " ")));
        all.extend(below(&child));
    }
    all
}

pub fn tree(server: &Server) -> Vec<(String, String)> {
    below(&server.pid().to_string())
}

fn exists(pid: &str) -> bool {
    std::path::Path::new("/proc").join(pid).exists()
}

/// Folders of browsers, by anyone.
fn folders() -> Vec<String> {
    let all = std::fs::read_dir(std::env::temp_dir()).expect("a folder").flatten();
    all.filter_map(|e| e.file_name().into_string().ok()).filter(|name| name.starts_with("scouter-browser-")).collect()
}

fn pages_know_nothing_of_each_other(lab: &Lab) {
    let server = server(lab, &[]);
    let site = Site::new(lab, |path| match path {
        "/set" => response(
            "200 OK",
            "Content-Type: text/html\r\nSet-Cookie: a=1; Max-Age=9999\r\nCache-Control: max-age=9999\r\n",
            "<script>localStorage.a = 1; console.log('store ' + localStorage.length)</script>",
        ),
        "/see" => Reply::Html(
            "<script>console.log('store ' + localStorage.length + ' cookie ' + document.cookie)</script>".into(),
        ),
        _ => response("404 Not Found", "Content-Length: 0\r\n", ""),
    });
    let browsers = |driver: &str| -> Vec<Value> {
        let status = server.get("/api/v1.0/status").body;
        let all = status["browsers"].as_array().expect("browsers");
        all.iter().filter(|browser| browser["driver"] == *driver).cloned().collect()
    };
    // Otherwise another one is started on a busy machine.
    let wait_until_idle = |driver: &str| {
        until("the browser is ready again", || browsers(driver).iter().any(|browser| browser["status"] == "idle"));
    };
    for driver in DRIVERS {
        for _ in 0..2 {
            let set = load(&server, json!({"url": site.url("/set"), "driver": driver}));
            wait_until_idle(driver);
            assert_eq!(set["result"]["parent"]["headers"]["set-cookie"], json!("a=1; Max-Age=9999"), "{driver}: {set}");
            let see = load(&server, json!({"url": site.url("/see"), "driver": driver}));
            assert_eq!(see["result"]["console"][0]["text"], json!("store 0 cookie "), "{driver}: {see}");
            wait_until_idle(driver);
        }
    }
    let heads = site.heads.lock().unwrap().clone();
    let of_pages = heads.iter().filter(|head| head.starts_with("GET /set ") || head.starts_with("GET /see "));
    assert!(!of_pages.clone().any(|head| head.to_lowercase().contains("cookie:")), "{heads:?}");
    assert_eq!(site.paths().iter().filter(|path| *path == "/set").count(), 4, "nothing comes from a cache");
    for driver in DRIVERS {
        let loads: Vec<Value> = browsers(driver).iter().map(|browser| browser["loads"].clone()).collect();
        assert_eq!(loads, [json!(4)], "{driver}: one did it all");
    }
}

/// Which process of a running browser is meant.
fn victim(server: &Server, driver: &str, what: &str) -> Option<String> {
    let tree = tree(server);
    let found = tree.iter().find(|(_, line)| {
        let chrome = driver == "chrome";
        let content = if chrome { line.contains("--type=") } else { line.contains("-contentproc") };
        let own = if chrome { "--remote-debugging-pipe" } else { "--remote-debugging-port" };
        match what {
            "supervisor" => line.contains(" supervise ") && line.contains(own),
            "browser" => !line.contains(" supervise ") && !content && line.contains(own) && !line.contains("/bin/sh"),
            _ if chrome => line.contains("--type=renderer"),
            _ => content && line.contains(" tab"),
        }
    });
    found.map(|(pid, _)| pid.clone())
}

fn whatever_dies_the_test_says_so_and_the_next_one_works(lab: &Lab) {
    let warm = server(lab, &[]);
    let site = Site::new(lab, |path| match path {
        "/hangs" => Reply::Html("<p>one <img src=/silent>".into()),
        "/silent" => Reply::Silence,
        _ => Reply::Html("<p>fine".into()),
    });
    for driver in DRIVERS {
        let ways = ["supervisor", "browser", "renderer"].map(|what| (what, "-9", vec!["cold", "loading", "warm"]));
        // Stopped, and never to go on.
        let stops = ["supervisor", "browser"].map(|what| (what, "-STOP", vec!["loading"]));
        for (what, signal, phases) in ways.into_iter().chain(stops) {
            for phase in phases {
                let fresh = (phase == "cold").then(|| self::server(lab, &[]));
                let server = fresh.as_ref().unwrap_or(&warm);
                let options = json!({"url": site.url("/hangs"), "driver": driver, "timeout_ms": 4000});
                if phase == "warm" {
                    let page = load(server, json!({"url": site.url("/"), "driver": driver}));
                    assert_eq!(page["failed"], json!(false), "{driver} {what}: {page}");
                }
                let hangs = |heads: &Site| heads.paths().iter().filter(|path| *path == "/silent").count();
                let before = hangs(&site);
                std::thread::scope(|scope| {
                    let test = (phase != "warm").then(|| scope.spawn(|| server.test("browser_request", &options)));
                    let end = Instant::now() + Duration::from_mins(1);
                    // Cold: as soon as it is there. Loading: when the page waits for its picture. Warm: while idle.
                    let mut killed = false;
                    while !killed && Instant::now() < end {
                        let ready = phase != "loading" || hangs(&site) > before;
                        if ready && let Some(pid) = victim(server, driver, what) {
                            killed =
                                Command::new("kill").args([signal, &pid]).status().is_ok_and(|status| status.success());
                        }
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    assert!(killed, "{driver} {what} {phase}: there is none");
                    if let Some(test) = test {
                        let test = test.join().expect("answered");
                        // A renderer that is not the page's own, or not yet, can be done without; then the page's time is up.
                        let late = what == "renderer" || signal == "-STOP";
                        let spared = late && test["result"]["parent"]["status"] == json!(200);
                        assert_eq!(test["failed"], json!(true), "{driver} {what} {phase}: {test}");
                        assert!(test["message"].is_string() || spared, "{driver} {what} {phase}: {test}");
                    }
                });
                let next = server
                    .test("browser_request", &json!({"url": site.url("/"), "driver": driver, "timeout_ms": 8000}));
                assert_eq!(next["failed"], json!(false), "after {driver} {what} {phase}: {next}");
            }
        }
    }
    let all = tree(&warm);
    let leftovers =
        || folders().into_iter().filter(|name| all.iter().any(|(_, line)| line.contains(name.as_str()))).count();
    assert!(leftovers() <= 2, "one for each warm browser");
    drop(warm);
    until("nothing of it is left", || all.iter().all(|(pid, _)| !exists(pid)));
    until("nor its folders", || leftovers() == 0);
}

fn a_server_that_is_killed_leaves_nothing_behind(lab: &Lab) {
    let site =
        Site::new(lab, |path| if path == "/silent" { Reply::Silence } else { Reply::Html("<img src=/silent>".into()) });
    for (round, signal) in
        [nix::sys::signal::SIGKILL, nix::sys::signal::SIGTERM].into_iter().cycle().take(6).enumerate()
    {
        let mut server = server(lab, &[]);
        let payload = json!({"browser_request": [
            {"url": site.url("/"), "driver": "chrome"}, {"url": site.url("/"), "driver": "firefox"}]});
        server.request("POST", "/api/v1.0/tests", Some(&payload.to_string()));
        // At another phase each time.
        std::thread::sleep(Duration::from_millis(100 + 500 * round as u64));
        let all = tree(&server);
        server.signal(signal);
        server.signal(signal);
        server.wait();
        until("nothing of it is left", || all.iter().all(|(pid, _)| !exists(pid)));
        let own = |name: &String| all.iter().any(|(_, line)| line.contains(name.as_str()));
        until("nor its folders", || !folders().iter().any(own));
    }
}

/// Instead of Firefox: something that writes to the browser's folder without an end, in a session of its own.
const WRITER: &str = r#"#!/bin/sh
setsid sh -c 'while :; do mkdir -p "$TMPDIR/a/b"; echo x >"$TMPDIR/a/b/$(date +%N)"; done' &
sleep 1000
"#;

/// A server that starts it, its folder, and its supervisor.
fn with_writer(lab: &Lab, name: &str) -> (Server, PathBuf, String) {
    let programs = lab.path(&format!("{name}/programs"));
    let temporary = lab.path(&format!("{name}/temporary"));
    for folder in [&programs, &temporary] {
        std::fs::create_dir_all(folder).expect("made");
    }
    let fake = programs.join("firefox-esr");
    std::fs::write(&fake, WRITER).expect("written");
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a path"));
    let server = server(lab, &[("PATH", &path), ("TMPDIR", temporary.to_str().expect("UTF-8"))]);
    let payload = json!({"browser_request": [{"url": "http://www.lab.test/", "driver": "firefox"}]});
    server.request("POST", "/api/v1.0/tests", Some(&payload.to_string()));
    let folder = || std::fs::read_dir(&temporary).expect("a folder").flatten().next().map(|entry| entry.path());
    until("it writes", || folder().is_some_and(|folder| folder.join("a/b").exists()));
    let folder = folder().expect("a folder");
    let supervisor = tree(&server).into_iter().find(|(_, line)| line.contains(" supervise ")).expect("a supervisor").0;
    (server, folder, supervisor)
}

/// Processes that have this folder for their temporary files.
fn living_in(folder: &Path) -> usize {
    let wanted = [b"TMPDIR=", folder.as_os_str().as_encoded_bytes()].concat();
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    let environments = processes.filter_map(|process| std::fs::read(process.path().join("environ")).ok());
    environments.filter(|environment| environment.split(|byte| *byte == 0).any(|variable| variable == wanted)).count()
}

fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().is_ok_and(|status| status.success()));
}

fn what_outlives_a_killed_supervisor_is_ended_and_removed(lab: &Lab) {
    let (server, folder, supervisor) = with_writer(lab, "outlives");
    kill("-9", &supervisor);
    until("no process uses the folder", || living_in(&folder) == 0);
    until("the folder is gone", || !folder.exists());
    drop(server);
}

fn what_killed_servers_have_left_the_next_one_removes(lab: &Lab) {
    let (mut first, folder, supervisor) = with_writer(lab, "left");
    // Neither has time for the other's end. Not the other way round: the kernel wakes a stopped process whose parent dies.
    first.signal(nix::sys::signal::SIGSTOP);
    until("the server has stopped", || state(&first.pid().to_string()) == Some('T'));
    kill("-9", &supervisor);
    first.signal(nix::sys::signal::SIGKILL);
    first.wait();
    assert!(living_in(&folder) > 0 && folder.exists());
    let long_ago = SystemTime::now() - Duration::from_mins(5);
    std::fs::File::open(&folder).expect("opened").set_modified(long_ago).expect("set");
    let temporary = folder.parent().expect("a folder").to_str().expect("UTF-8");
    let next = server(lab, &[("TMPDIR", temporary)]);
    until("no process uses the folder", || living_in(&folder) == 0);
    until("the folder is gone", || !folder.exists());
    drop(next);
}

/// A field of a process's status (proc(5)), from the third one on; None when it has ended.
fn status_field(pid: &str, number: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(number - 3).map(ToOwned::to_owned)
}

fn state(pid: &str) -> Option<char> {
    status_field(pid, 3)?.chars().next()
}

/// The nice value.
fn nice(pid: &str) -> Option<i32> {
    status_field(pid, 19)?.parse().ok()
}

fn four_at_once_and_no_more_than_there_are_ports(lab: &Lab) {
    let first = ports();
    let range = first.split_once('-').map(|(first, _)| first.parse::<u16>().expect("a port")).expect("a range");
    let server = lab.server(&[("BUP_PROXY_PORT_RANGE", &format!("{range}-{}", range + 1))]);
    let tests: Vec<Value> = (0..4)
        .map(|n| json!({"id": n, "url": format!("http://www.lab.test/page/index.html?{n}"), "driver": DRIVERS[n % 2]}))
        .collect();
    let own = nice(&server.pid().to_string());
    let (results, most) = std::thread::scope(|scope| {
        let run = scope.spawn(|| server.run(&json!({"browser_request": tests})));
        let mut most = 0;
        while !run.is_finished() {
            // Also when the plugin has computed meanwhile, whose threads have a low priority.
            for (pid, line) in tree(&server).into_iter().filter(|(_, line)| line.contains(" supervise ")) {
                assert!(nice(&pid).is_none_or(|nice| Some(nice) == own), "{line} has a lower priority");
            }
            let browsers = server.get("/api/v1.0/status").body["browsers"].as_array().map_or(0, Vec::len);
            most = most.max(browsers);
            std::thread::sleep(Duration::from_millis(50));
        }
        (run.join().expect("answered"), most)
    });
    for (n, test) in results["browser_request"].as_array().expect("results").iter().enumerate() {
        assert_eq!((&test["failed"], &test["id"]), (&json!(false), &json!(n)), "{test}");
        let url = test["result"]["parent"]["url"].as_str().expect("a URL");
        assert!(url.ends_with(&format!("?{n}")), "{test}");
    }
    assert_eq!(most, 2, "two ports, two browsers");
}

fn idle_browsers_are_stopped(lab: &Lab) {
    let server = server(lab, &[("SCOUTER_BROWSER_IDLE", "1")]);
    for driver in DRIVERS {
        load(&server, json!({"url": "http://www.lab.test/page/index.html", "driver": driver}));
    }
    assert!(!tree(&server).is_empty());
    until("they are stopped", || tree(&server).is_empty());
    assert_eq!(server.get("/api/v1.0/status").body["browsers"], json!([]));
    let (rss, _) = server.weight();
    // The promise (80 MiB) is for an optimised program; bench/ holds it to that.
    assert!(rss < 200 << 10, "{rss} kB");
}

fn a_host_without_a_browser_says_what_is_missing(lab: &Lab) {
    let mut command = lab.probe.command("env");
    command.args(["PATH=/nonexistent", scouter()]);
    let server = lab.server_by(command, &[]);
    for (driver, missing) in [("chrome", "chromium or "), ("firefox", "firefox-esr or firefox")] {
        let test = server.test("browser_request", &json!({"url": "www.lab.test", "driver": driver}));
        let message = test["message"].as_str().expect("a message");
        assert!(message.contains(missing) && message.contains(" is not installed on this host"), "{test}");
    }
    let test = server.test("http_request", &json!({"url": "http://www.lab.test/"}));
    assert_eq!(test["failed"], json!(false), "everything else works: {test}");
}

fn without_root_chrome_keeps_its_sandbox(lab: &Lab) {
    let server = lab.server_by(
        nobody(&lab.probe),
        &[("SCOUTER_CACHE_DIR", "/nonexistent/scouter"), ("SCOUTER_BROWSER_PORTS", &ports())],
    );
    for driver in DRIVERS {
        let test = load(&server, json!({"url": "http://www.lab.test/page/index.html", "driver": driver}));
        assert_eq!(test["failed"], json!(false), "{test}");
    }
    let tree = tree(&server);
    assert!(!tree.iter().any(|(_, line)| line.contains("--no-sandbox")), "{tree:?}");
    let renderer = tree.iter().find(|(_, line)| line.contains("--type=renderer")).expect("a renderer");
    let status = std::fs::read_to_string(format!("/proc/{}/status", renderer.0)).expect("its status");
    assert!(status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])), "{status}");
}

fn what_this_host_cannot_reach_is_not_the_targets_failure(_: &Lab) {
    // A namespace with nothing but loopback has no route.
    let bare = Namespace::add(format!("scouter-{}-r", std::process::id()));
    let server = Server::spawn(
        bare.command(scouter()),
        &[("SCOUTER_TARGETS_ALLOW", "any"), ("SCOUTER_BROWSER_PORTS", &ports())],
        Some(bare.clone()),
    );
    for driver in DRIVERS {
        let test = server.test("browser_request", &json!({"url": "http://192.0.2.1/", "driver": driver}));
        assert_eq!(
            (&test["message"], &test["result"]),
            (&json!("This host has no route to the target."), &json!({})),
            "{driver}: {test}"
        );
    }
    drop(server);
    bare.delete();
}

/// As in many containers.
fn a_machine_without_ipv6_has_browsers_too(_: &Lab) {
    let four = Namespace::add(format!("scouter-{}-b4", std::process::id()));
    four.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1");
    let settings = [("SCOUTER_TARGETS_ALLOW", "127.0.0.0/8")];
    let server = Server::spawn(four.command(scouter()), &settings, Some(four.clone()));
    for driver in DRIVERS {
        let test = load(&server, json!({"url": server.url("/docs"), "driver": driver}));
        assert_eq!((&test["failed"], &test["message"]), (&json!(false), &Value::Null), "{test}");
    }
    drop(server);
    four.delete();
}
