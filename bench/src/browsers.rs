//! chromedriver alone, as whoever has no Scouter would use it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::lab::Lab;

/// A bare chromedriver in the probe's namespace.
pub struct Bare<'a> {
    lab: &'a Lab,
    child: Child,
    url: String,
}

impl<'a> Bare<'a> {
    pub fn start(lab: &'a Lab) -> Self {
        let mut command = lab.probe.command("chromedriver");
        let mut child = command.arg("--port=0").stdout(Stdio::piped()).spawn().expect("chromedriver");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let port = lines
            .find_map(|line| line.split_once("successfully on port ")?.1.trim_end_matches('.').parse::<u16>().ok())
            .expect("a port");
        // Whoever writes into a closed pipe ends.
        std::thread::spawn(move || lines.for_each(drop));
        Self { lab, child, url: format!("http://127.0.0.1:{port}") }
    }

    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.url);
        self.lab.probe.inside(|| {
            let agent: ureq::Agent =
                ureq::Agent::config_builder().timeout_global(Some(Duration::from_mins(1))).build().into();
            let request =
                ureq::http::Request::builder().method(method).uri(url).header("content-type", "application/json");
            let mut answer = agent.run(request.body(body.to_string()).expect("a request")).expect("an answer");
            answer.body_mut().read_json::<Value>().expect("JSON")
        })
    }

    /// `bidi`: with the means to be told of requests, as a test needs them.
    pub fn session(&self, bidi: bool) -> String {
        let arguments =
            ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"];
        let wanted = json!({"capabilities": {"alwaysMatch": {"browserName": "chrome", "webSocketUrl": bidi,
            "goog:chromeOptions": {"binary": "/usr/bin/chromium", "args": arguments}}}});
        self.ask("POST", "/session", &wanted)["value"]["sessionId"].as_str().expect("a session").to_owned()
    }
}

impl Drop for Bare<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
