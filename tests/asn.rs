//! The ASN database of a running server: followed, and fetched from a download server of the tests' own.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::server::{Server, command};
use crate::support::{SOON, root, until};
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("asn":
        without_a_database_the_server_says_how_to_get_one,
        a_download_that_fails_is_tried_again_later_each_time,
        every_form_of_download_is_taken_and_kept_for_the_next_start,
        what_is_the_newest_is_not_fetched_again,
        a_source_that_makes_no_sense_is_an_error_at_start,
    )
}

/// A database whose first network (10.80.1.0/24) belongs to the system with this number.
pub fn database(file: &Path, first: u32) {
    let python = root().join("target/lab-venv/bin/python");
    let script = root().join("tests/support/asn.py");
    let status = Command::new(python).arg(script).arg(file).arg(first.to_string()).status().expect("python runs");
    assert!(status.success());
}

fn bytes(first: u32) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    database(&folder.path().join("asn.mmdb"), first);
    std::fs::read(folder.path().join("asn.mmdb")).expect("written")
}

/// The build date, and what is wrong.
pub fn status(server: &Server) -> (Option<String>, Option<String>) {
    let status = server.get("/api/v1.0/status").body;
    let text = |field: &str| status[field].as_str().map(ToOwned::to_owned);
    (text("asn_database"), text("asn_database_problem"))
}

/// What a download server was asked: when, and with which head.
type Asked = Arc<Mutex<Vec<(Instant, String)>>>;

/// Gives the n-th answer to the n-th request, and the last one to all others.
fn downloads(answers: Vec<Vec<u8>>) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten().take(20) {
            let head = head(&stream);
            let mut log = log.lock().unwrap();
            let answer = answers.get(log.len()).or(answers.last()).expect("an answer");
            log.push((Instant::now(), head));
            let _ = (&stream).write_all(answer);
        }
    });
    (url, asked)
}

fn head(stream: &TcpStream) -> String {
    let lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    lines.map(|line| line + "\n").collect()
}

fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

const FAILED: &[u8] = b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn without_a_database_the_server_says_how_to_get_one() {
    let cache = tempfile::tempdir().expect("a folder");
    let server = Server::spawn(command(), &[("SCOUTER_CACHE_DIR", cache.path().to_str().expect("UTF-8"))], None);
    until("the first look", || status(&server).1.is_some());
    let (built, problem) = status(&server);
    assert_eq!(built, None);
    assert!(problem.as_ref().is_some_and(|problem| problem.contains("GeoLite2-ASN.mmdb")), "{problem:?}");
}

fn a_download_that_fails_is_tried_again_later_each_time() {
    let whole = bytes(64500);
    let cut = [ok(&whole)[..400].to_vec(), ok(&whole[..whole.len() / 2]), ok(&whole)];
    let (url, asked) = downloads([vec![FAILED.to_vec()], cut.to_vec()].concat());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("new/asn.mmdb");
    let started = Instant::now();
    let server = Server::spawn(
        command(),
        &[
            ("SCOUTER_MMDB_URL", &format!("{url}/asn?key={{license_key}}")),
            ("MMDB_LICENSE_KEY", "very-secret-key"),
            ("SCOUTER_MMDB_PATH", file.to_str().expect("UTF-8")),
        ],
        None,
    );
    assert!(started.elapsed() < SOON, "it serves without: {:?}", started.elapsed());
    let mut problems = vec![];
    while status(&server).0.is_none() {
        assert!(started.elapsed() < Duration::from_mins(1), "{problems:?}\n{}", server.log());
        assert!(std::fs::read(&file).is_ok_and(|found| found == whole) || !file.exists(), "half a file is never seen");
        problems.extend(status(&server).1.filter(|problem| problems.last() != Some(problem)));
        std::thread::sleep(Duration::from_millis(50));
    }
    until("nothing is wrong any more", || status(&server).1.is_none());
    let all = problems.join("\n");
    assert!(all.contains("500") && all.contains("not a whole MaxMind database"), "{all}");
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 4, "{all}");
    // Twice as long each time; jitter adds up to as much again, and a busy machine some more.
    for (pair, least) in asked.windows(2).zip([2.0, 4.0, 8.0]) {
        let pause = (pair[1].0 - pair[0].0).as_secs_f64();
        let most = least * 2.0 + 2.0;
        assert!((least - 0.1..most).contains(&pause), "{pause} s, not {least}–{most} s");
    }
    assert!(asked[0].1.starts_with("GET /asn?key=very-secret-key HTTP/1.1"), "{}", asked[0].1);
    let shown = [server.log(), all, server.get("/api/v1.0/status").body.to_string()].concat();
    assert!(!shown.contains("very-secret"), "{shown}");
}

fn every_form_of_download_is_taken_and_kept_for_the_next_start() {
    let plain = bytes(64500);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::default());
        encoder.write_all(bytes).expect("compressed");
        encoder.finish().expect("compressed")
    };
    // As MaxMind packs it: a folder with the date, texts beside the database.
    let mut archive = tar::Builder::new(vec![]);
    for (name, data) in [("GeoLite2-ASN_1/README.txt", &b"hello"[..]), ("GeoLite2-ASN_1/GeoLite2-ASN.mmdb", &plain)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, data).expect("packed");
    }
    let archive = gzip(&archive.into_inner().expect("packed"));
    for (form, download) in [("plain", plain.clone()), ("gzip", gzip(&plain)), ("tar.gz", archive)] {
        let (url, asked) = downloads(vec![ok(&download)]);
        let folder = tempfile::tempdir().expect("a folder");
        let cache = ("SCOUTER_CACHE_DIR", folder.path().to_str().expect("UTF-8"));
        let server = Server::spawn(command(), &[("SCOUTER_MMDB_URL", &url), cache], None);
        until(form, || status(&server).0.is_some());
        drop(server);
        assert_eq!(asked.lock().unwrap().len(), 1, "{form}");
        let kept = std::fs::read(folder.path().join("GeoLite2-ASN.mmdb")).expect("kept");
        assert!(kept == plain, "{form}: what is kept is the database itself");
        let again = Server::spawn(command(), &[cache], None);
        until(form, || status(&again) == (Some(built(&again)), None));
    }
}

fn built(server: &Server) -> String {
    status(server).0.unwrap_or_default()
}

fn what_is_the_newest_is_not_fetched_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("asn.mmdb");
    database(&file, 64500);
    let (url, asked) = downloads(vec![b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n".to_vec()]);
    let settings = [("SCOUTER_MMDB_URL", url.as_str()), ("SCOUTER_MMDB_PATH", file.to_str().expect("UTF-8"))];
    let server = Server::spawn(command(), &settings, None);
    until("the answer is understood", || server.log().contains("is current"));
    until("the file is read", || status(&server).0.is_some());
    assert_eq!(status(&server).1, None);
    let asked = asked.lock().unwrap();
    let line = asked[0].1.lines().find(|line| line.to_lowercase().starts_with("if-modified-since:")).expect("the date");
    let date = line.split_once(": ").expect("a value").1.to_owned();
    drop(asked);
    let mut reference = Command::new("date");
    reference.args(["-u", "-r"]).arg(&file).arg("+%a, %d %b %Y %H:%M:%S GMT").env("LC_ALL", "C");
    assert_eq!(date, String::from_utf8_lossy(&reference.output().expect("runs").stdout).trim());
}

fn a_source_that_makes_no_sense_is_an_error_at_start() {
    for (settings, words) in [
        (vec![("SCOUTER_MMDB_URL", "ftp://mirror.example/asn")], "https:// or http:// is expected"),
        (vec![("SCOUTER_MMDB_URL", "mirror")], "SCOUTER_MMDB_URL is not a URL"),
        (vec![("SCOUTER_MMDB_URL", "https://mirror.example/{license_key}")], "set MMDB_LICENSE_KEY"),
        (vec![("SCOUTER_MMDB_URL", "ftp://u:hunter2@mirror.example/")], "is not allowed"),
    ] {
        let mut command = command();
        command.arg("serve").env("SCOUTER_API_SECRET", "a-secret-for-the-tests").envs(settings.clone());
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(words) && !text.contains("hunter2"), "{settings:?}: {text}");
    }
}

/// The systems of a path, hop by hop.
pub fn systems(result: &Value) -> Vec<(Value, Value)> {
    let hops = result["trace"].as_array().expect("a trace").iter();
    hops.map(|hop| (hop["asn"].clone(), hop["as_name"].clone())).collect()
}

/// What the database of `first` says of the chain's first hops: r1, r2, and r5 with its other prefix.
pub fn expected(first: u32) -> Vec<(usize, Value, Value)> {
    let system = |place: usize, number: u32| (place, json!(number), json!(format!("Lab network {number}")));
    vec![system(0, first), system(1, first + 1), system(4, first + 2), system(7, first + 3)]
}
