//! The judge of round trips: a packet capture by tcpdump on the probe's own interface, with the kernel's timestamps.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pnet_packet::Packet;
use pnet_packet::icmp::{IcmpPacket, IcmpTypes};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::tcp::{TcpFlags, TcpPacket};
use pnet_packet::udp::UdpPacket;

use crate::support::lab::Lab;
use crate::support::until;

/// A running capture.
pub struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    /// Of what `filter` says, on `device` in the probe's namespace.
    pub fn start(lab: &Lab, device: &str, filter: &str) -> Self {
        let file = lab.path("capture.pcap");
        let _ = std::fs::remove_file(&file);
        let mut command = lab.probe.command("tcpdump");
        // Not in immediate mode: waking tcpdump for each packet would delay the packet.
        command.args(["-i", device, "-U", "-n", "-s", "160", "-Z", "root"]);
        command.args(["--time-stamp-precision=nano", "-w"]).arg(&file).arg(filter);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("tcpdump");
        let mut said = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(said.read_line(&mut line).expect("a line") > 0, "tcpdump ended");
        }
        // It writes how many packets it saw when it ends.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, file }
    }

    /// Milliseconds from each request to its answer, in the order of requests, once there are so many.
    pub fn round_trips(mut self, count: usize) -> Vec<f64> {
        let read = || round_trips(&std::fs::read(&self.file).unwrap_or_default());
        until("the capture has every answer", || read().len() >= count);
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), Signal::SIGINT).expect("signalled");
        let _ = self.child.wait();
        let all = read();
        let _ = File::create(&self.file);
        all
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a request and its answer have in common; `true` for the request.
type Exchange = ((u8, u32, u32), bool);

/// ICMP echoes by identifier and sequence, DNS messages by port and identifier, TCP handshakes by ports.
fn exchange(packet: &[u8]) -> Option<Exchange> {
    let ip = Ipv4Packet::new(packet)?;
    let protocol = ip.get_next_level_protocol();
    let data = packet.get(usize::from(ip.get_header_length()) * 4..)?;
    let number = |at: usize| Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let key = |a: u16, b: u16| (protocol.0, u32::from(a), u32::from(b));
    match protocol {
        IpNextHeaderProtocols::Icmp => {
            let is_request = match IcmpPacket::new(data)?.get_icmp_type() {
                IcmpTypes::EchoRequest => true,
                IcmpTypes::EchoReply => false,
                _ => return None,
            };
            Some((key(number(4)?, number(6)?), is_request))
        }
        IpNextHeaderProtocols::Udp => {
            let udp = UdpPacket::new(data)?;
            let id = u16::from_be_bytes(udp.payload().get(..2)?.try_into().ok()?);
            let is_request = udp.get_destination() == 53;
            Some((key(if is_request { udp.get_source() } else { udp.get_destination() }, id), is_request))
        }
        IpNextHeaderProtocols::Tcp => {
            let tcp = TcpPacket::new(data)?;
            let (source, destination) = (tcp.get_source(), tcp.get_destination());
            match tcp.get_flags() & (TcpFlags::SYN | TcpFlags::ACK) {
                TcpFlags::SYN => Some((key(source, destination), true)),
                both if both == TcpFlags::SYN | TcpFlags::ACK => Some((key(destination, source), false)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// From a pcap file with nanoseconds, of Ethernet or of bare IP; the last record may not be there to its end yet.
fn round_trips(file: &[u8]) -> Vec<f64> {
    const NANOSECONDS: u32 = 0xa1b2_3c4d;
    let word = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
    if word(0) != Some(NANOSECONDS) {
        return vec![];
    }
    let link = if word(20) == Some(1) { 14 } else { 0 };
    let (mut at, mut asked, mut answered) = (24, vec![], HashMap::new());
    while let (Some(seconds), Some(nanoseconds), Some(length)) = (word(at), word(at + 4), word(at + 8)) {
        let (start, end) = (at + 16, at + 16 + length as usize);
        let Some(packet) = file.get((start + link).min(end)..end) else { break };
        let time = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        match exchange(packet) {
            Some((key, true)) => asked.push((key, time)),
            Some((key, false)) => _ = answered.entry(key).or_insert(time),
            None => {}
        }
        at = end;
    }
    #[expect(clippy::cast_precision_loss, reason = "less than a minute")]
    let between = |key: &(u8, u32, u32), time: i128| Some((*answered.get(key)? - time) as f64 / 1e6);
    asked.iter().filter_map(|(key, time)| between(key, *time)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 header without options in front of `data`.
    fn ip(protocol: u8, data: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet[3] = u8::try_from(20 + data.len()).expect("short");
        packet.extend(data);
        packet
    }

    fn echo(kind: u8, sequence: u8) -> Vec<u8> {
        ip(1, &[kind, 0, 0, 0, 1, 2, 0, sequence])
    }

    fn pcap(link: u32, packets: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut file: Vec<u8> =
            [0xa1b2_3c4d, 0x0004_0002, 0, 0, 262_144, link].into_iter().flat_map(u32::to_le_bytes).collect();
        for (nanoseconds, packet) in packets {
            let before = if link == 1 { vec![0; 14] } else { vec![] };
            let frame = [before, packet.clone()].concat();
            let length = u32::try_from(frame.len()).expect("short");
            file.extend([7, *nanoseconds, length, length].into_iter().flat_map(u32::to_le_bytes));
            file.extend(frame);
        }
        file
    }

    #[test]
    fn round_trips_are_paired_by_sequence_in_the_order_of_requests() {
        let packets = [(1000, echo(8, 0)), (2000, echo(8, 1)), (5000, echo(0, 1)), (9000, echo(0, 0))];
        for link in [1, 101] {
            assert_eq!(round_trips(&pcap(link, &packets)), [0.008, 0.003]);
        }
    }

    #[test]
    fn what_has_no_answer_or_no_end_yet_is_not_there() {
        let file = pcap(1, &[(1000, echo(8, 0)), (2000, echo(0, 0)), (3000, echo(8, 1))]);
        assert_eq!(round_trips(&file), [0.001]);
        assert_eq!(round_trips(&file[..file.len() - 40]), [0.001], "the last record has an end to come");
        assert!(round_trips(&file[..90]).is_empty() && round_trips(b"").is_empty());
    }

    #[test]
    fn dns_questions_and_handshakes_are_exchanges_too() {
        let dns = |from: u16, to: u16| {
            let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
            ip(17, &[&ports[..], &[0, 12, 0, 0, 0xab, 0xcd, 1, 0]].concat())
        };
        assert_eq!(round_trips(&pcap(101, &[(0, dns(4000, 53)), (1_000_000, dns(53, 4000))])), [1.0]);
        let tcp = |from: u16, to: u16, flags: u8| {
            let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
            ip(6, &[&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]].concat())
        };
        let handshake = [(0, tcp(4000, 80, 2)), (2_000_000, tcp(80, 4000, 18)), (2_100_000, tcp(4000, 80, 16))];
        assert_eq!(round_trips(&pcap(101, &handshake)), [2.0]);
    }
}
