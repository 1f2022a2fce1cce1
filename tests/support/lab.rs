//! A network of namespaces with real servers in it:
//!
//! ```text
//! probe (10.77.0.1, fd77::1) ── veth ── target (10.77.0.2–9 and 20–29, fd77::2–9)
//! ```
//!
//! From 20 on the addresses are for name servers that tests bring along. The target runs nsd (DNS over UDP, TCP, TLS), unbound (HTTPS), aioquic (QUIC), nginx (HTTP/1.1, 2) and caddy
//! (HTTP/3), under certificates of an authority made here. Behind it lie a black hole (198.51.100.1), a host
//! that it says cannot be reached (198.51.100.2) and one that it says is prohibited (198.51.100.3).

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;

use super::chain::Chain;
use super::server::{Server, clean};
use super::{root, scouter, until};

/// One network namespace, entered by its name.
#[derive(Clone, Debug)]
pub struct Namespace(String);

impl Namespace {
    pub fn add(name: String) -> Self {
        // A namespace inherits settings of the machine, where container runtimes turn forwarding on.
        sh(&format!(
            "ip netns add {name} && ip -n {name} link set lo up
             ip netns exec {name} sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"
        ));
        Self(name)
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// Ends whatever runs inside, and the namespace.
    pub fn delete(self) {
        sh(&format!(
            "ip netns pids {0} | xargs -r kill -9 2>/dev/null || true; rm -rf /etc/netns/{0}; ip netns del {0}",
            self.0
        ));
    }

    /// A shell command inside.
    pub fn sh(&self, script: &str) {
        let output = self.command("sh").args(["-ec", script]).output().expect("a shell");
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Does something with the network of this namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let file = fs::File::open(format!("/run/netns/{}", self.0)).expect("the namespace");
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("entered");
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that runs inside, with the namespace's own resolv.conf.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        clean(&mut command);
        command
    }

    /// Runs a command to its end; what it printed.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().expect("runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

pub struct Lab {
    pub probe: Namespace,
    pub target: Namespace,
    pub chain: Chain,
    pub folder: TempDir,
    servers: Vec<Child>,
}

pub fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().expect("a shell");
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

impl Lab {
    pub fn build() -> Self {
        let pid = std::process::id();
        forget_dead_labs();
        let probe = Namespace::add(format!("scouter-{pid}-p"));
        let target = Namespace::add(format!("scouter-{pid}-t"));
        let (p, t) = (&probe.0, &target.0);
        sh(&format!(
            "ip -n {p} link add veth0 type veth peer name veth0 netns {t}
             ip netns exec {p} sysctl -qw net.ipv4.ping_group_range='0 2147483647'
             ip netns exec {t} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0
             for n in 1; do ip -n {p} addr add 10.77.0.$n/24 dev veth0; ip -n {p} addr add fd77::$n/64 dev veth0 nodad; done
             for n in 2 3 4 5 6 7 8 9; do ip -n {t} addr add 10.77.0.$n/24 dev veth0; ip -n {t} addr add fd77::$n/64 dev veth0 nodad; done
             for n in 20 21 22 23 24 25 26 27 28 29 30 31; do ip -n {t} addr add 10.77.0.$n/24 dev veth0; done
             ip -n {p} link set veth0 up; ip -n {t} link set veth0 up
             ip -n {p} route add default via 10.77.0.2; ip -n {p} -6 route add default via fd77::2
             ip -n {t} route add blackhole 198.51.100.1; ip -n {t} route add unreachable 198.51.100.2; ip -n {t} route add prohibit 198.51.100.3
             ip -n {t} -6 route add unreachable 2001:db8:2::/48
             ip -n {t} link add low type veth peer name low2; ip -n {t} link set low2 up; ip -n {t} link set low mtu 1280 up; ip -n {t} addr add 198.51.100.65/28 dev low
             mkdir -p /etc/netns/{p}; printf 'nameserver 10.77.0.2\\noptions timeout:2 attempts:1\\n' > /etc/netns/{p}/resolv.conf"
        ));
        let chain = Chain::build(&probe);
        let mut lab = Self { probe, target, chain, folder: TempDir::new().expect("a folder"), servers: vec![] };
        lab.certificates();
        lab.dns();
        lab.web();
        lab.settle();
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Starts a server in the target's namespace; it ends with the lab.
    fn start(&mut self, program: &str, arguments: &[&str]) {
        self.start_in(&self.target.clone(), program, arguments);
    }

    fn start_in(&mut self, namespace: &Namespace, program: &str, arguments: &[&str]) {
        let log = fs::File::create(self.path(&format!("{}.log", program.rsplit('/').next().expect("a name"))))
            .expect("a log");
        let child = namespace
            .command(program)
            .args(arguments)
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        self.servers.push(child);
    }

    fn certificates(&self) {
        let dir = self.folder.path().display().to_string();
        // The CA, then one certificate for everything, and one each for what can be wrong with one.
        sh(&format!(
            "cd {dir}
             openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 30 -subj '/CN=Scouter lab CA' 2>/dev/null
             issue() {{
               openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -out $1.csr -subj \"/CN=$2\" 2>/dev/null
               printf 'subjectAltName=%s\\n' \"$3\" > $1.ext
               openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out $1.pem $4 -extfile $1.ext 2>/dev/null
               cat ca.pem >> $1.pem
             }}
             issue good www.lab.test 'DNS:lab.test,DNS:*.lab.test,IP:10.77.0.2,IP:10.77.0.3,IP:10.77.0.4,IP:10.77.0.5' '-days 30'
             issue expired expired.lab.test 'DNS:expired.lab.test' '-days -1'
             openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout self.key -out self.pem -days 30 -subj /CN=self.lab.test -addext subjectAltName=DNS:self.lab.test 2>/dev/null
             chmod -R a+rX {dir}"
        ));
    }

    #[expect(clippy::format_collect, reason = "two zones")]
    fn dns(&mut self) {
        let zone = root().join("tests/support/lab.test.zone").display().to_string();
        let dir = self.folder.path().display().to_string();
        let reverse: String = Chain::reverse_zones()
            .into_iter()
            .map(|(zone, text)| {
                let file = self.write(&format!("{zone}.zone"), &text);
                format!("zone:\n  name: {zone}\n  zonefile: {file}\n")
            })
            .collect();
        let nsd = self.write("nsd.conf", &format!(
            "server:\n  ip-address: 10.77.0.2\n  ip-address: fd77::2\n  ip-address: 10.77.0.2@853\n  nsid: \"ascii_ns1.lab\"\n  ipv4-edns-size: 4096\n  username: \"\"\n  chroot: \"\"\n  pidfile: {dir}/nsd.pid\n  \
             database: \"\"\n  zonesdir: {dir}\n  xfrdfile: {dir}/xfrd.state\n  zonelistfile: {dir}/zone.list\n  tls-service-key: {dir}/good.key\n  tls-service-pem: {dir}/good.pem\n  tls-port: 853\n  \
             rrl-ratelimit: 0\nremote-control:\n  control-enable: no\nzone:\n  name: lab.test\n  zonefile: {zone}\n{reverse}"
        ));
        self.start("nsd", &["-d", "-c", &nsd]);
        let far = self.write("far/nsd.conf", &format!(
            "server:\n  ip-address: 10.81.0.2\n  ip-address: fd81::2\n  username: \"\"\n  chroot: \"\"\n  pidfile: {dir}/far/nsd.pid\n  database: \"\"\n  zonesdir: {dir}\n  \
             xfrdfile: {dir}/far/xfrd.state\n  zonelistfile: {dir}/far/zone.list\n  rrl-ratelimit: 0\nremote-control:\n  control-enable: no\nzone:\n  name: lab.test\n  zonefile: {zone}\n"
        ));
        self.start_in(&self.chain.target.clone(), "nsd", &["-d", "-c", &far]);
        let unbound = self.write("unbound.conf", &format!(
            "server:\n  interface: 10.77.0.4@443\n  interface: 10.77.0.4@53\n  https-port: 443\n  tls-service-key: {dir}/good.key\n  tls-service-pem: {dir}/good.pem\n  username: \"\"\n  chroot: \"\"\n  \
             directory: {dir}\n  pidfile: {dir}/unbound.pid\n  access-control: 0.0.0.0/0 allow\n  use-syslog: no\n  do-daemonize: no\n  local-zone: test. nodefault\n  domain-insecure: test\n  \
             do-not-query-localhost: no\nremote-control:\n  control-enable: no\nstub-zone:\n  name: lab.test\n  stub-addr: 10.77.0.2\n"
        ));
        self.start("unbound", &["-d", "-c", &unbound]);
        let python = root().join("target/lab-venv/bin/python").display().to_string();
        let script = root().join("tests/support/doq.py").display().to_string();
        self.start(
            &python,
            &[&script, "10.77.0.5", "853", &format!("{dir}/good.pem"), &format!("{dir}/good.key"), "10.77.0.2"],
        );
    }

    fn web(&mut self) {
        let dir = self.folder.path().display().to_string();
        let files = self.path("www");
        fs::create_dir_all(&files).expect("made");
        fs::write(files.join("index.html"), "hello from the lab\n").expect("written");
        fs::write(files.join("large"), vec![b'x'; 1 << 20]).expect("written");
        fs::write(files.join("huge"), vec![b'x'; 65 << 20]).expect("written");
        fs::create_dir_all(files.join("page")).expect("made");
        for (name, text) in super::site::PAGE {
            fs::write(files.join("page").join(name), text).expect("written");
        }
        let text = fs::read_to_string(root().join("tests/support/nginx.conf")).expect("nginx.conf");
        let nginx = self.write("nginx.conf", &text.replace("@DIR@", &dir));
        self.start("nginx", &["-e", &format!("{dir}/nginx-error.log"), "-c", &nginx]);
        let caddy = self.write("Caddyfile", &format!(
            "{{\n admin off\n auto_https disable_redirects\n skip_install_trust\n servers {{\n protocols h1 h2 h3\n }}\n}}\nhttps://h3.lab.test {{\n bind 10.77.0.3 fd77::3\n tls {dir}/good.pem {dir}/good.key\n root * {dir}/www\n file_server\n}}\n"
        ));
        self.start("caddy", &["run", "--config", &caddy, "--adapter", "caddyfile"]);
    }

    fn settle(&self) {
        for (what, address) in [
            ("nsd", "10.77.0.2:53"),
            ("unbound", "10.77.0.4:443"),
            ("nginx", "10.77.0.2:443"),
            ("caddy", "10.77.0.3:443"),
            // The first packet over IPv6 waits for neighbour discovery.
            ("nginx over IPv6", "[fd77::2]:80"),
            ("caddy over IPv6", "[fd77::3]:443"),
            ("nsd at the end of the chain", "10.81.0.2:53"),
            ("the end of the chain over IPv6", "[fd81::2]:53"),
            ("the small link over IPv6", "[fd81::2]:80"),
        ] {
            until(what, || self.probe.inside(|| std::net::TcpStream::connect(address).is_ok()));
        }
        until("aioquic", || fs::read_to_string(self.path("python.log")).is_ok_and(|log| log.contains("ready")));
    }

    /// Another host on a link of its own: the probe is `.1` there, the host `.2`.
    pub fn connect(&self, host: &Namespace, net: &str) {
        let (p, h, name) = (&self.probe.0, &host.0, net.replace('.', "-"));
        sh(&format!(
            "ip -n {p} link add l{name} type veth peer name veth0 netns {h}
             ip -n {p} addr add {net}.1/24 dev l{name}; ip -n {h} addr add {net}.2/24 dev veth0
             ip -n {p} link set l{name} up; ip -n {h} link set veth0 up"
        ));
    }

    /// A server in another namespace.
    pub fn server_in(&self, namespace: &Namespace, settings: &[(&str, &str)]) -> Server {
        let mut command = namespace.command(scouter());
        command.env("SSL_CERT_FILE", self.path("ca.pem"));
        Server::spawn(command, settings, Some(namespace.clone()))
    }

    /// A server in the probe's namespace that may reach the lab.
    pub fn server(&self, settings: &[(&str, &str)]) -> Server {
        self.server_by(self.probe.command(scouter()), settings)
    }

    pub fn server_by(&self, mut command: Command, settings: &[(&str, &str)]) -> Server {
        command.env("SSL_CERT_FILE", self.path("ca.pem"));
        let lab = [
            ("SCOUTER_TARGETS_ALLOW", "10.77.0.0/24,fd77::/64,198.51.100.0/24,2001:db8:2::/48,10.80.0.0/15,fd80::/15"),
            ("SCOUTER_MAX_PROCESS_COUNT", "50"),
            ("SCOUTER_MAX_TEST_COUNT", "1000"),
        ];
        let settings: Vec<_> = lab.iter().chain(settings).copied().collect();
        Server::spawn(command, &settings, Some(self.probe.clone()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // All processes in the namespaces: the servers, and workers that they left.
        let all = || [&self.probe, &self.target].into_iter().chain(&self.chain.nodes).map(Namespace::name);
        for namespace in all() {
            sh(&format!(
                "ip netns pids {namespace} | xargs -r kill -9 2>/dev/null || true; rm -rf /etc/netns/{namespace}"
            ));
        }
        for server in &mut self.servers {
            let _ = server.wait();
        }
        for namespace in [&self.probe, &self.target].into_iter().chain(&self.chain.nodes).map(Namespace::name) {
            sh(&format!("ip netns del {namespace}"));
        }
    }
}

/// Labs whose test run was killed.
fn forget_dead_labs() {
    let Ok(names) = fs::read_dir("/run/netns") else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix("scouter-").and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            sh(&format!(
                "ip netns pids {name} | xargs -r kill -9 2>/dev/null || true; ip netns del {name}; rm -rf /etc/netns/{name}"
            ));
        }
    }
}
