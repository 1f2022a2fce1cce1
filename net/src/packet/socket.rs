//! Packets with their kernel metadata: timestamp, source, TTL, and the error queue.

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

/// A larger difference between the two clocks means that the wall clock was set.
const MAX_CLOCK_DRIFT: Duration = Duration::from_millis(1);

/// Between the readings of the two clocks.
const MAX_READING: Duration = Duration::from_micros(100);
const MAX_READINGS: u32 = 8;

/// A moment on both clocks: `CLOCK_REALTIME`, which kernel timestamps use, and `CLOCK_MONOTONIC`, which cannot be set.
#[derive(Debug, Clone, Copy)]
pub struct Timestamp {
    wall: Duration,
    pub monotonic: Instant,
}

impl Timestamp {
    #[must_use]
    pub fn now() -> Self {
        // A process that is preempted between the two readings would look like a wall clock that was set: read again then.
        let mut before = Instant::now();
        let mut readings = 0;
        loop {
            let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let monotonic = Instant::now();
            readings += 1;
            if monotonic - before < MAX_READING || readings == MAX_READINGS {
                return Self { wall, monotonic };
            }
            before = monotonic;
        }
    }

    /// Since the Unix epoch.
    #[must_use]
    pub fn wall(&self) -> Duration {
        self.wall
    }

    /// This moment moved to a kernel timestamp. None when that is not between this moment and now, as far as two clocks that
    /// are read one after the other can tell.
    #[must_use]
    pub fn corrected_by(self, kernel: Duration) -> Option<Self> {
        let (later, now) = (kernel.checked_sub(self.wall)?, Instant::now());
        let monotonic = self.monotonic + later;
        // The monotonic clock was read up to so much after the wall clock.
        (monotonic <= now + MAX_READING).then(|| Self { wall: kernel, monotonic: monotonic.min(now) })
    }

    /// From this moment to a kernel timestamp that has just been read. Falls back to the monotonic clock, which
    /// includes the time until the process woke up, when there is no timestamp or the wall clock was set in between.
    #[must_use]
    pub fn elapsed_until(&self, kernel: Option<Duration>) -> Duration {
        let now = Self::now();
        let monotonic = now.monotonic.duration_since(self.monotonic);
        let Some(kernel) = kernel else { return monotonic };
        let wall = now.wall.checked_sub(self.wall);
        match (wall, kernel.checked_sub(self.wall)) {
            (Some(wall), Some(rtt))
                if wall.abs_diff(monotonic) < MAX_CLOCK_DRIFT && rtt <= monotonic + MAX_CLOCK_DRIFT =>
            {
                rtt
            }
            _ => monotonic,
        }
    }
}

/// Registers a non-blocking socket with tokio's reactor.
///
/// # Errors
/// When the socket cannot be registered, or outside of a runtime with I/O.
pub fn register(socket: Socket, interest: Interest) -> io::Result<AsyncFd<Socket>> {
    #[expect(unsafe_code, reason = "a Socket owns its descriptor and always returns the same one, as AsyncFd requires")]
    let registered = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(registered?)
}

/// A packet's length and kernel metadata.
#[derive(Debug)]
pub struct Received {
    /// Bytes; more than the buffer holds when the packet was truncated and `MSG_TRUNC` was set.
    pub length: usize,
    /// From the error queue: the destination of the packet that the error quotes.
    pub source: Option<IpAddr>,
    pub ttl: Option<u8>,
    /// Kernel timestamp, since the Unix epoch.
    pub timestamp: Option<Duration>,
    /// From the error queue: which send the transmit timestamp belongs to, counted from 0 (`SOF_TIMESTAMPING_OPT_ID`).
    pub send_id: Option<u32>,
    /// From the error queue: the ICMP error that quotes a packet of this socket.
    pub error: Option<IcmpError>,
}

/// An ICMP error as reported on the error queue.
#[derive(Debug, Clone, Copy)]
pub struct IcmpError {
    pub source: IpAddr,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// The next-hop MTU, where the type has one.
    pub info: u32,
}

/// A buffer for all control messages that this crate enables, and for those of the error queue.
#[must_use]
pub fn control_buffer() -> Vec<u8> {
    nix::cmsg_space!(libc::timespec, [libc::timespec; 3], libc::c_int, libc::sock_extended_err, libc::sockaddr_in6)
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
        timestamp: None,
        send_id: None,
        error: None,
    };
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::ScmTimestampns(at) => {
                received.timestamp = u64::try_from(at.num_nanoseconds()).ok().map(Duration::from_nanos);
            }
            ControlMessageOwned::ScmTimestampsns(at) => {
                received.timestamp = u64::try_from(at.system.num_nanoseconds()).ok().map(Duration::from_nanos);
            }
            ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                received.ttl = u8::try_from(ttl).ok();
            }
            ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _)
                if error.ee_origin == libc::SO_EE_ORIGIN_TIMESTAMPING =>
            {
                received.send_id = Some(error.ee_data);
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

/// Reads the receive queue and the error queue of a socket, both to their ends.
pub struct SocketReader {
    socket: std::sync::Arc<AsyncFd<Socket>>,
    buffer: Vec<u8>,
    control: Vec<u8>,
}

impl SocketReader {
    /// `capacity` bytes of each message are kept.
    #[must_use]
    pub fn new(socket: std::sync::Arc<AsyncFd<Socket>>, capacity: usize) -> Self {
        Self { socket, buffer: vec![0; capacity], control: control_buffer() }
    }

    /// The next message of either queue. Cancel-safe.
    pub async fn next(&mut self) -> (Received, &[u8]) {
        loop {
            // A sender may be faster than this reader: other tasks of the thread get their turn. Before the read, which
            // would be lost with this future.
            tokio::task::coop::consume_budget().await;
            if let Some(received) = self.read() {
                let length = received.length.min(self.buffer.len());
                return (received, &self.buffer[..length]);
            }
            match self.socket.ready(Interest::READABLE | Interest::ERROR).await {
                // Cleared before the socket is read again: a message that arrives in between is found by that read.
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => std::future::pending().await,
            }
        }
    }

    fn read(&mut self) -> Option<Received> {
        for queue in [MsgFlags::empty(), MsgFlags::MSG_ERRQUEUE] {
            // Any call may fail with the pending error of an earlier packet; only EAGAIN means that the queue is empty.
            for _ in 0..16 {
                let flags = queue | MsgFlags::MSG_DONTWAIT;
                match receive(self.socket.get_ref(), flags, &mut self.buffer, &mut self.control) {
                    // What this host itself refused to send (`SO_EE_ORIGIN_LOCAL`), as the send has said already.
                    Ok(received) if queue == MsgFlags::MSG_ERRQUEUE && received.error.is_none() => {}
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
        let mut sent = Timestamp::now();
        sent.wall += Duration::from_hours(1);
        assert!(sent.elapsed_until(Some(Timestamp::now().wall)) < Duration::from_millis(100));
        sent.wall -= Duration::from_hours(2);
        assert!(sent.elapsed_until(Some(Timestamp::now().wall)) < Duration::from_millis(100));
    }

    #[test]
    fn an_interruption_between_the_two_clocks_loses_no_timestamp() {
        let mut sent = Timestamp::now();
        // The monotonic clock was read later than the wall clock, by less than is noticed.
        sent.monotonic += MAX_READING / 2;
        let corrected = sent.corrected_by(sent.wall + Duration::from_micros(10)).expect("10 µs later");
        assert!(corrected.monotonic <= Instant::now());
        assert!(sent.corrected_by(sent.wall + Duration::from_hours(1)).is_none(), "in the future");
        let before = sent.wall.saturating_sub(Duration::from_nanos(1));
        assert!(sent.corrected_by(before).is_none(), "before the send");
    }
}
