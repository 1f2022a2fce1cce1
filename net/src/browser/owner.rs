//! Which process is at the other end of a TCP connection over loopback? The kernel says which socket it is (`sock_diag(7)`,
//! or the table in `/proc/net` where that is not there), and the list of a process's descriptors whether it has that
//! socket. Only the supervisor of a browser asks: it has the privileges of its browser, no more and no less, and so may
//! see that list.

use std::io::Read;
use std::net::Ipv4Addr;
use std::time::Duration;

use rustix::process::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use super::processes::{self, is_below};

/// `linux/netlink.h` and `linux/sock_diag.h`.
pub const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = NLMSG_HEADER + 56;
/// `struct inet_diag_msg`, without what may follow it.
const ANSWER: usize = NLMSG_HEADER + 72;

/// A socket of this host: user and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketInfo {
    pub uid: u32,
    pub inode: u64,
}

/// The one at `from`, connected to `to`; both are ports of 127.0.0.1.
#[must_use]
pub fn socket(from: u16, to: u16) -> Option<SocketInfo> {
    match ask_kernel(from, to) {
        Ok(answer) => answer_of(&answer),
        // Not in this kernel, or not allowed here.
        Err(_) => ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .find_map(|table| in_table(&std::fs::read_to_string(table).unwrap_or_default(), from, to)),
    }
}

fn ask_kernel(from: u16, to: u16) -> std::io::Result<Vec<u8>> {
    let mut socket = Socket::new(Domain::from(AF_NETLINK), Type::DGRAM, Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.send(&request(from, to))?;
    let mut answer = vec![0; 4096];
    let length = socket.read(&mut answer)?;
    answer.truncate(length);
    let kind = answer.get(4..6).and_then(|kind| Some(u16::from_ne_bytes(kind.try_into().ok()?)));
    // Otherwise NLMSG_ERROR, whose number says why; that there is no such socket is an answer.
    let code =
        answer.get(NLMSG_HEADER..NLMSG_HEADER + 4).and_then(|code| Some(i32::from_ne_bytes(code.try_into().ok()?)));
    match code {
        Some(code) if kind != Some(SOCK_DIAG_BY_FAMILY) && code != -rustix::io::Errno::NOENT.raw_os_error() => {
            Err(std::io::Error::from_raw_os_error(-code))
        }
        _ => Ok(answer),
    }
}

/// For exactly one socket, whatever its state.
fn request(from: u16, to: u16) -> [u8; REQUEST] {
    const TCP: u8 = 6;
    let mut bytes = [0; REQUEST];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, &u32::try_from(REQUEST).unwrap_or_default().to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(16, &[2 /* AF_INET */, TCP]);
    put(20, &u32::MAX.to_ne_bytes());
    put(24, &from.to_be_bytes());
    put(26, &to.to_be_bytes());
    put(28, &Ipv4Addr::LOCALHOST.octets());
    put(44, &Ipv4Addr::LOCALHOST.octets());
    // INET_DIAG_NOCOOKIE.
    put(64, &[0xff; 8]);
    bytes
}

fn answer_of(answer: &[u8]) -> Option<SocketInfo> {
    if answer.len() < ANSWER || answer[4..6] != SOCK_DIAG_BY_FAMILY.to_ne_bytes() {
        return None;
    }
    let number = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    Some(SocketInfo { uid: number(80)?, inode: number(84)?.into() }).filter(|found| found.inode > 0)
}

/// `/proc/net/tcp` or `tcp6`: addresses are words in the order of the machine, ports are not.
fn in_table(table: &str, from: u16, to: u16) -> Option<SocketInfo> {
    let loopback = format!("{:08X}", u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets()));
    let (from, to) = (format!("{loopback}:{from:04X}"), format!("{loopback}:{to:04X}"));
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, _, _, _, _, uid, _, inode, ..] = fields[..] else { return None };
        let wanted = local.ends_with(&from) && remote.ends_with(&to);
        Some(SocketInfo { uid: uid.parse().ok()?, inode: inode.parse().ok()? })
            .filter(|found| wanted && found.inode > 0)
    })
}

/// The processes below one, and the one of them that had the last socket: a browser's connections are made by one process.
#[derive(Debug)]
pub struct Descendants {
    of: Pid,
    last: Option<Pid>,
}

impl Descendants {
    #[must_use]
    pub fn of(of: Pid) -> Self {
        Self { of, last: None }
    }

    /// Is the socket at this port, connected to the other one, held by one of them?
    pub fn have(&mut self, from: u16, to: u16) -> bool {
        let Some(found) = socket(from, to) else { return false };
        // Most other processes belong to other users.
        if found.uid != rustix::process::geteuid().as_raw() {
            return false;
        }
        let name = format!("socket:[{}]", found.inode);
        if self.last.is_some_and(|last| is_below(last, self.of) && holds(last, &name)) {
            return true;
        }
        self.last = processes::all().find(|pid| is_below(*pid, self.of) && holds(*pid, &name));
        self.last.is_some()
    }
}

fn holds(pid: Pid, socket: &str) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).into_iter().flatten().flatten();
    descriptors
        .into_iter()
        .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == socket))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, u16, u16, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let to = listener.local_addr().expect("an address").port();
        let stream = TcpStream::connect(("127.0.0.1", to)).expect("connected");
        let from = stream.local_addr().expect("an address").port();
        (stream, from, to, listener)
    }

    #[test]
    fn both_ways_find_the_socket_that_connected() {
        let (stream, from, to, _listener) = pair();
        let found = socket(from, to).expect("found");
        let link =
            std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&stream))).expect("a link");
        assert_eq!(link.to_str(), Some(format!("socket:[{}]", found.inode).as_str()));
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the table");
        assert_eq!(in_table(&table, from, to), Some(found));
        drop(stream);
        assert_eq!(socket(from, to), None, "it is closed");
    }

    #[test]
    fn a_process_has_its_own_sockets_and_no_others() {
        let (_stream, from, to, _listener) = pair();
        let own = rustix::process::getpid();
        assert!(holds(own, &format!("socket:[{}]", socket(from, to).expect("found").inode)));
        let mut of_parent = Descendants::of(processes::parent_of(own).expect("a parent"));
        assert!(of_parent.have(from, to) && of_parent.have(from, to), "this process is below its parent");
        assert!(!Descendants::of(own).have(from, to), "and not below itself");
    }

    #[test]
    fn an_answer_that_is_cut_or_another_ones_is_none() {
        let mut answer = vec![0; ANSWER];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[80..84].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(answer_of(&answer), None, "no inode");
        answer[84..88].copy_from_slice(&9_u32.to_ne_bytes());
        assert_eq!(answer_of(&answer), Some(SocketInfo { uid: 7, inode: 9 }));
        for length in 0..ANSWER {
            assert_eq!(answer_of(&answer[..length]), None);
        }
    }

    #[test]
    fn a_table_is_read_in_both_families() {
        let word = format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1]));
        let line = |local: &str, remote: &str| {
            format!(
                "   1: {local}:0050 {remote}:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 20\n"
            )
        };
        let mapped = format!("0000000000000000FFFF0000{word}");
        let found = Some(SocketInfo { uid: 1000, inode: 4242 });
        assert_eq!(in_table(&line(&word, &word), 0x50, 0x1f90), found);
        assert_eq!(in_table(&line(&mapped, &mapped), 0x50, 0x1f90), found);
        assert_eq!(in_table(&line(&word, &word), 0x1f90, 0x50), None);
        assert_eq!(in_table("  sl  local_address rem_address\n\n", 1, 2), None);
    }
}
