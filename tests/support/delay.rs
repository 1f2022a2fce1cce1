//! A slower way, which this kernel cannot make by itself (it has no netem): a second link from the probe to r1, through two
//! TUN devices whose packets a thread for each direction holds back. What goes over it has addresses of its own:
//!
//! ```text
//! probe (10.80.20N.1) ── delay ── r1 (10.80.20N.2) ─ r2 ─ … ─ r7 ┬ target (10.81.0.5N)
//!                                                                └ dropped (10.81.1.5N)
//! ```
//!
//! Over IPv4 only. Packets are never reordered; what comes while 10,000 are held back is dropped.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use tun_rs::{DeviceBuilder, SyncDevice};

use super::lab::{Lab, Namespace, sh};

pub struct Detour {
    number: u8,
}

impl Detour {
    /// `number`: 0 to 9, a detour each. `there` is for what the probe sends, `back` for what it receives.
    pub fn build(lab: &Lab, number: u8, there: Duration, back: Duration) -> Self {
        assert!(number < 10, "the target has addresses for ten");
        let name = format!("delay{number}");
        let r1 = lab.chain.nodes.iter().find(|node| node.name().ends_with("-r1")).expect("r1");
        let [near, far] = [&lab.probe, r1].map(|namespace| open(namespace, &name));
        let (p, r) = (lab.probe.name(), r1.name());
        sh(&format!(
            "ip netns exec {p} sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{name}.rp_filter=0
             ip -n {p} addr add 10.80.20{number}.1/24 dev {name}; ip -n {r} addr add 10.80.20{number}.2/24 dev {name}
             ip -n {p} link set {name} up; ip -n {r} link set {name} up
             for net in 0 1; do ip -n {p} route add 10.81.$net.5{number}/32 via 10.80.20{number}.2; done"
        ));
        relay(&near, &far, there);
        relay(&far, &near, back);
        Self { number }
    }

    /// r1's end of the link, from where its errors come.
    pub fn first_hop(&self) -> String {
        format!("10.80.20{}.2", self.number)
    }

    pub fn target(&self) -> String {
        format!("10.81.0.5{}", self.number)
    }

    /// An address that r7 drops packets to.
    pub fn black_hole(&self) -> String {
        format!("10.81.1.5{}", self.number)
    }
}

fn open(namespace: &Namespace, name: &str) -> Arc<SyncDevice> {
    namespace.inside(|| Arc::new(DeviceBuilder::new().name(name).build_sync().expect("a TUN device")))
}

/// Both threads end with the devices, which end with their namespaces.
fn relay(from: &Arc<SyncDevice>, to: &Arc<SyncDevice>, delay: Duration) {
    let (from, to) = (Arc::clone(from), Arc::clone(to));
    let (sender, held) = sync_channel(10_000);
    std::thread::spawn(move || {
        let mut packet = vec![0; 65_536];
        while let Ok(length) = from.recv(&mut packet) {
            let _ = sender.try_send((Instant::now() + delay, packet[..length].to_vec()));
        }
    });
    std::thread::spawn(move || let_go(&held, &to));
}

fn let_go(held: &Receiver<(Instant, Vec<u8>)>, to: &SyncDevice) {
    while let Ok((due, packet)) = held.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // A device that is down, or gone with its namespace, takes nothing.
        let _ = to.send(&packet);
    }
}
