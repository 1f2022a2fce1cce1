//! Packets with what the kernel says about them: when they came, from whom, with which TTL, and what was dropped.

use std::io::{self, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant, SystemTime};

use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use nix::sys::time::TimeValLike;
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The two clocks drift apart by this only when somebody sets the wall clock.
const STEP: Duration = Duration::from_millis(1);

/// A moment on both clocks: the wall clock is what the kernel stamps with, the other one cannot be set.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    wall: Duration,
    pub steady: Instant,
}

impl Stamp {
    #[must_use]
    pub fn now() -> Self {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { wall, steady: Instant::now() }
    }

    /// Since the epoch.
    #[must_use]
    pub fn wall(&self) -> Duration {
        self.wall
    }

    /// This moment, as the kernel has stamped it, if that can be: between this one and now.
    #[must_use]
    pub fn corrected(self, kernel: Duration) -> Option<Self> {
        let later = kernel.checked_sub(self.wall).filter(|later| *later <= self.steady.elapsed())?;
        Some(Self { wall: kernel, steady: self.steady + later })
    }

    /// From this moment to a kernel timestamp that has just been read. Falls back to the steady clock, which includes
    /// the time until the process woke up, when there is no timestamp or the wall clock was set in between.
    #[must_use]
    pub fn until(&self, kernel: Option<Duration>) -> Duration {
        let now = Self::now();
        let steady = now.steady.duration_since(self.steady);
        let Some(kernel) = kernel else { return steady };
        let wall = now.wall.checked_sub(self.wall);
        match (wall, kernel.checked_sub(self.wall)) {
            (Some(wall), Some(rtt)) if wall.abs_diff(steady) < STEP && rtt <= steady + STEP => rtt,
            _ => steady,
        }
    }
}

/// A socket that tokio watches.
///
/// # Errors
/// When it cannot be watched, or this is not the I/O runtime.
pub fn watched(socket: Socket, interest: Interest) -> io::Result<AsyncFd<Socket>> {
    #[expect(unsafe_code, reason = "a Socket owns its descriptor and always gives the same one, as is asked for")]
    let watched = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(watched?)
}

/// A packet and what the kernel says about it.
#[derive(Debug)]
pub struct Received {
    pub length: usize,
    /// On the error queue: where the packet was going that the error quotes.
    pub source: Option<IpAddr>,
    pub ttl: Option<u8>,
    /// Since the epoch.
    pub at: Option<Duration>,
    /// Packets dropped by this socket since it was opened, for want of room.
    pub dropped: u32,
    /// From the error queue: the ICMP error that quotes a packet of ours.
    pub error: Option<IcmpError>,
}

/// An ICMP error as the error queue has it.
#[derive(Debug, Clone, Copy)]
pub struct IcmpError {
    pub source: IpAddr,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// The next-hop MTU, where the type has one.
    pub info: u32,
}

/// Room for every control message that receivers here ask for, and for those of the error queue.
#[must_use]
pub fn control_room() -> Vec<u8> {
    nix::cmsg_space!(libc::timespec, [libc::timespec; 3], u32, libc::c_int, libc::sock_extended_err, libc::sockaddr_in6)
}

/// Reads one packet.
///
/// # Errors
/// `EAGAIN` when there is none; an ICMP error that is pending on the socket.
pub fn receive(socket: &impl AsRawFd, flags: MsgFlags, buffer: &mut [u8], control: &mut [u8]) -> nix::Result<Received> {
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(control), flags)?;
    let mut received = Received {
        length: message.bytes,
        source: message.address.as_ref().and_then(address_of),
        ttl: None,
        at: None,
        dropped: 0,
        error: None,
    };
    for extra in message.cmsgs()? {
        match extra {
            ControlMessageOwned::ScmTimestampns(at) => {
                received.at = u64::try_from(at.num_nanoseconds()).ok().map(Duration::from_nanos);
            }
            ControlMessageOwned::ScmTimestampsns(at) => {
                received.at = u64::try_from(at.system.num_nanoseconds()).ok().map(Duration::from_nanos);
            }
            ControlMessageOwned::RxqOvfl(dropped) => received.dropped = dropped,
            ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                received.ttl = u8::try_from(ttl).ok();
            }
            ControlMessageOwned::Ipv4RecvErr(error, Some(from)) if error.ee_origin == libc::SO_EE_ORIGIN_ICMP => {
                received.error = Some(IcmpError::new(&error, IpAddr::V4(u32::from_be(from.sin_addr.s_addr).into())));
            }
            ControlMessageOwned::Ipv6RecvErr(error, Some(from)) if error.ee_origin == libc::SO_EE_ORIGIN_ICMP6 => {
                received.error = Some(IcmpError::new(&error, IpAddr::V6(from.sin6_addr.s6_addr.into())));
            }
            _ => {}
        }
    }
    Ok(received)
}

impl IcmpError {
    fn new(error: &libc::sock_extended_err, source: IpAddr) -> Self {
        Self { source, icmp_type: error.ee_type, icmp_code: error.ee_code, info: error.ee_info }
    }
}

/// A socket that is read to the end of its queue, and of its error queue.
pub struct Inbox {
    socket: std::sync::Arc<AsyncFd<Socket>>,
    buffer: Vec<u8>,
    control: Vec<u8>,
    /// Packets that the socket dropped for want of room.
    pub dropped: u32,
    told: u32,
}

impl Inbox {
    /// `room` is the longest message that is wanted whole.
    #[must_use]
    pub fn new(socket: std::sync::Arc<AsyncFd<Socket>>, room: usize) -> Self {
        Self { socket, buffer: vec![0; room], control: control_room(), dropped: 0, told: 0 }
    }

    /// The next message. Loses nothing when dropped.
    pub async fn next(&mut self) -> (Received, &[u8]) {
        loop {
            if let Some(received) = self.read() {
                self.dropped = self.dropped.max(received.dropped);
                let length = received.length.min(self.buffer.len());
                return (received, &self.buffer[..length]);
            }
            match self.socket.ready(Interest::READABLE | Interest::ERROR).await {
                // Cleared before the socket is read again: what comes in between is seen by that read.
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Packets that the socket dropped since this was last asked.
    pub fn newly_dropped(&mut self) -> u32 {
        let new = self.dropped.wrapping_sub(self.told);
        self.told = self.dropped;
        new
    }

    fn read(&mut self) -> Option<Received> {
        for queue in [MsgFlags::empty(), MsgFlags::MSG_ERRQUEUE] {
            // Any call may fail with the pending error of an earlier packet; only EAGAIN means that all is read.
            for _ in 0..16 {
                let flags = queue | MsgFlags::MSG_DONTWAIT;
                match receive(self.socket.get_ref(), flags, &mut self.buffer, &mut self.control) {
                    Ok(received) => return Some(received),
                    Err(nix::Error::EAGAIN) => break,
                    Err(_) => {}
                }
            }
        }
        None
    }
}

fn address_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_was_set_does_not_reach_the_result() {
        let mut sent = Stamp::now();
        sent.wall += Duration::from_hours(1);
        assert!(sent.until(Some(Stamp::now().wall)) < Duration::from_millis(100));
        sent.wall -= Duration::from_hours(2);
        assert!(sent.until(Some(Stamp::now().wall)) < Duration::from_millis(100));
    }
}
