//! Programs that measurements are compared with.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::support::lab::{Lab, Namespace};

/// `blackbox_exporter` in the probe's namespace; stopped when dropped.
pub struct Blackbox {
    child: Child,
    pub address: SocketAddr,
}

impl Blackbox {
    /// Asks for what ours is asked for: IPv4 alone, HTTP/1.1, the lab's authority.
    fn configuration(lab: &Lab) -> String {
        let ca = lab.path("ca.pem");
        let v4 = "preferred_ip_protocol: ip4, ip_protocol_fallback: false";
        format!(
            "modules:\n  \
               http: {{prober: http, timeout: 10s, http: {{{v4}, enable_http2: false, tls_config: {{ca_file: {}}}}}}}\n  \
               dns: {{prober: dns, timeout: 10s, dns: {{{v4}, query_name: www.lab.test, query_type: A, transport_protocol: udp}}}}\n  \
               icmp: {{prober: icmp, timeout: 10s, icmp: {{{v4}, payload_size: 56}}}}\n",
            ca.display()
        )
    }

    pub fn start(lab: &Lab) -> Self {
        let config = lab.path("blackbox.yml");
        std::fs::write(&config, Self::configuration(lab)).expect("written");
        let address =
            lab.probe.inside(|| TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address"));
        let mut command = lab.probe.command("prometheus-blackbox-exporter");
        command.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address={address}"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let blackbox = Self { child: child.expect("blackbox_exporter starts"), address };
        // Its start is measured: looked for often.
        lab.probe.inside(|| {
            let began = Instant::now();
            while TcpStream::connect(address).is_err() {
                assert!(began.elapsed() < Duration::from_mins(1), "blackbox_exporter does not listen");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        blackbox
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn path(module: &str, target: &str) -> String {
        format!("/probe?module={module}&target={target}")
    }
}

impl Drop for Blackbox {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that ran once.
#[derive(Debug)]
pub struct Ran {
    pub text: String,
    pub ok: bool,
    /// From before its start to after its end.
    pub ms: f64,
    /// Processor time of the program, its start included.
    pub cpu_ms: f64,
}

/// Runs a program inside a namespace, without the cost of `ip netns exec`. It sees the machine's own resolv.conf: for
/// addresses only.
pub fn once(namespace: &Namespace, program: &Path, arguments: &[&str]) -> Ran {
    namespace.inside(|| {
        let mut command = Command::new(program);
        command.args(arguments);
        timed(&mut command)
    })
}

/// The same of any command. Nobody else may wait for a child meanwhile: the time of all children is what is compared.
pub fn timed(command: &mut Command) -> Ran {
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage");
        usage.user_time() + usage.system_time()
    };
    let (before, started) = (used(), Instant::now());
    let output = command.stdin(Stdio::null()).output().expect("runs");
    let ms = started.elapsed().as_secs_f64() * 1e3;
    let cpu = (used() - before).num_microseconds();
    #[expect(clippy::cast_precision_loss, reason = "seconds at most")]
    let cpu_ms = cpu as f64 / 1e3;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ran { text, ok: output.status.success(), ms, cpu_ms }
}
