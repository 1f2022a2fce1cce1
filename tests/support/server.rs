//! A server of a test's own, and a client for it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::lab::Namespace;
use super::{hostile, plugins, scouter, until};

pub const SECRET: &str = "a-secret-for-the-tests";

/// A running server; stopped when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    namespace: Option<Namespace>,
    log: Arc<Mutex<String>>,
}

/// An answer: status, headers, body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: Value,
}

pub fn command() -> Command {
    let mut command = Command::new(scouter());
    clean(&mut command);
    command
}

/// Nothing of the tests' own environment decides what a server does.
pub fn clean(command: &mut Command) {
    for (name, _) in std::env::vars() {
        if ["SCOUTER_", "UWSGI_", "API_PORT", "BUP_", "MMDB_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
}

impl Server {
    /// On loopback, with these settings besides.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::spawn(command(), settings, None)
    }

    /// On loopback, with the hostile plugin for a test type.
    pub fn hostile(settings: &[(&str, &str)]) -> Self {
        let folder = hostile();
        let plugins = [("SCOUTER_PLUGIN_DIR", folder.to_str().expect("UTF-8"))];
        Self::start(&plugins.iter().chain(settings).copied().collect::<Vec<_>>())
    }

    /// In a namespace, by a command that ends in the program.
    pub fn spawn(command: Command, settings: &[(&str, &str)], namespace: Option<Namespace>) -> Self {
        Self::spawn_with(command, settings, namespace, Some(SECRET))
    }

    /// As [`spawn`](Self::spawn), with another secret or none in the environment.
    pub fn spawn_with(
        mut command: Command,
        settings: &[(&str, &str)],
        namespace: Option<Namespace>,
        secret: Option<&str>,
    ) -> Self {
        command
            .envs(secret.map(|secret| ("SCOUTER_API_SECRET", secret)))
            .env("SCOUTER_LISTEN", "127.0.0.1")
            .env("API_PORT", "0")
            .env("SCOUTER_PLUGIN_DIR", plugins())
            .env("SCOUTER_CACHE_DIR", std::path::Path::new(scouter()).with_file_name("plugin-cache"))
            .env(
                "SCOUTER_LOG",
                "debug,hickory_resolver=warn,hickory_net=warn,hyper=warn,h2=warn,rustls=warn,wasmtime=warn",
            )
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let log = Arc::new(Mutex::new(String::new()));
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut address = None;
        for line in lines.by_ref().map_while(Result::ok) {
            // As text, or as JSON.
            let reported = line.split_once("address=").or_else(|| line.split_once("\"address\":\""));
            if let Some((_, rest)) = reported.filter(|_| line.contains("listening")) {
                address = rest.split([' ', '"']).next().and_then(|text| text.parse().ok());
            }
            log.lock().unwrap().push_str(&(line + "\n"));
            if address.is_some() {
                break;
            }
        }
        let Some(address) = address else {
            let status = child.wait().expect("waited");
            panic!("the server did not start ({status}):\n{}", log.lock().unwrap());
        };
        let reader = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                reader.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        Self { child, address, namespace, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A request with the secret.
    pub fn request(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        self.raw(
            method,
            path,
            &[("authorization", SECRET), ("content-type", "application/json")],
            body.map(str::as_bytes),
        )
    }

    pub fn raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Answer {
        let ask = || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(Duration::from_mins(2)))
                .allow_non_standard_methods(true)
                .build()
                .into();
            let mut request = ureq::http::Request::builder().method(method).uri(self.url(path));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let response = match body {
                Some(body) => agent.run(request.body(body).expect("a request")),
                None => agent.run(request.body(()).expect("a request")),
            };
            let mut response = response.unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()));
            let text = response.body_mut().read_to_string().expect("a body");
            Answer {
                status: response.status().as_u16(),
                headers: response.headers().clone(),
                body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
            }
        };
        match &self.namespace {
            Some(namespace) => namespace.inside(ask),
            None => ask(),
        }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, None)
    }

    /// Posts a payload and waits for its results.
    pub fn run(&self, payload: &Value) -> Value {
        let answer = self.request("POST", "/api/v1.0/tests?wait=100", Some(&payload.to_string()));
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["is_running"], json!(false), "{}", answer.body);
        answer.body["results"].clone()
    }

    /// Runs one test and gives the whole of it: id, failed, message, result.
    pub fn test(&self, test_type: &str, options: &Value) -> Value {
        self.run(&json!({test_type: [options]}))[test_type][0].clone()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).expect("a pid")), signal).expect("signalled");
    }

    /// Waits for the end; the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("waited").code()
    }

    /// The peak of resident memory, in kilobytes.
    pub fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        peak.trim().trim_end_matches(" kB").trim().parse().expect("a number")
    }

    /// Kilobytes in memory, and open file descriptors.
    pub fn weight(&self) -> (u64, usize) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let rss = rss.trim().trim_end_matches(" kB").trim().parse().expect("a number");
        (rss, std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("fd").count())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Those who clean up after it, when it is killed.
        let supervisors = children(self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
        until("supervisors have ended", || {
            supervisors.iter().all(|pid| !std::path::Path::new("/proc").join(pid).exists())
        });
    }
}

/// The processes whose parent this one is.
pub fn children(parent: u32) -> Vec<String> {
    let numbers = std::fs::read_dir("/proc").expect("/proc").flatten().filter_map(|e| e.file_name().into_string().ok());
    numbers
        .filter(|number| {
            let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
            let after = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
            after == Some(parent)
        })
        .collect()
}
