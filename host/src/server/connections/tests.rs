use bytes::Bytes;
use http_body_util::BodyExt as _;

use super::super::response::ResponseBody;
use super::*;
use crate::api::SharedBody;

const SECOND: Duration = Duration::from_secs(1);

fn connections(limits: impl FnOnce(&mut Limits)) -> Arc<Connections> {
    let mut all = Limits::new(2);
    limits(&mut all);
    Arc::new(Connections::new(all))
}

fn is_closed(ticket: &Ticket) -> bool {
    ticket.connection.close.is_cancelled()
}

#[test]
fn the_longest_silent_connection_gives_way_and_a_busy_one_does_not() {
    let all = connections(|limits| limits.reserve = 1);
    let now = Instant::now();
    let [busy, silent] = [now, now + SECOND].map(|at| all.admit(at).expect("a place"));
    let exchange = busy.requests().begin(Version::HTTP_11);
    let third = all.admit(now + SECOND).expect("a place");
    assert!(is_closed(&silent) && !is_closed(&busy) && !third.connection.reserved());
    let other = third.requests().begin(Version::HTTP_2);
    // Both busy: the reserve, and then nothing.
    let reserved = all.admit(now + SECOND).expect("the reserve");
    assert!(reserved.connection.reserved());
    let request = reserved.requests().begin(Version::HTTP_11);
    assert!(all.admit(now + SECOND).is_none());
    drop((request, exchange, other));
    // One that is idle gives way as well.
    assert!(all.admit(Instant::now()).is_some());
    assert_eq!([&busy, &third, &reserved].into_iter().filter(|ticket| is_closed(ticket)).count(), 1);
}

#[test]
fn heads_idle_connections_and_unread_responses_have_their_deadlines() {
    let all = connections(|limits| limits.connections = 10);
    let start = Instant::now();
    let ticket = |begun: bool| {
        let ticket = all.admit(start).expect("a place");
        let exchange = begun.then(|| ticket.requests().begin(Version::HTTP_11));
        (ticket, exchange)
    };
    let (head, (busy, _kept), (unread, response)) = (ticket(false).0, ticket(true), ticket(true));
    let idle = ticket(true).0;
    let begun = ticket(true).0;
    begun.connection.received();
    let response = response.expect("begun");
    response.given();
    let closed = |after: u64| {
        all.sweep(Instant::now() + Duration::from_secs(after));
        [&head, &begun, &unread, &idle, &busy].map(is_closed)
    };
    assert_eq!(closed(4), [false; 5]);
    assert_eq!(closed(6), [true, true, false, false, false]);
    assert_eq!(closed(29), [true, true, false, false, false]);
    assert_eq!(closed(31), [true, true, true, false, false]);
    assert_eq!(closed(76), [true, true, true, true, false]);
    assert_eq!(closed(1000), [true, true, true, true, false], "a request under way has no deadline here");
}

#[test]
fn a_slice_that_is_taken_begins_the_time_again_and_the_last_one_ends_it() {
    let all = connections(|_| ());
    let ticket = all.admit(Instant::now()).expect("a place");
    let exchange = ticket.requests().begin(Version::HTTP_2);
    exchange.given();
    exchange.given();
    let since = |ticket: &Ticket| match ticket.connection.waiting() {
        Some(Waiting::Unread(at)) => Some(at),
        _ => None,
    };
    let first = since(&ticket).expect("unread");
    std::thread::sleep(Duration::from_millis(2));
    exchange.taken();
    assert!(since(&ticket).expect("unread") > first);
    exchange.taken();
    assert_eq!(ticket.connection.waiting(), None, "the server's turn");
    ticket.connection.wrote(false);
    assert!(since(&ticket).is_some(), "the socket takes nothing");
    ticket.connection.wrote(true);
    assert_eq!(ticket.connection.waiting(), None);
}

#[test]
fn too_much_to_write_closes_the_client_that_has_not_read_for_longest() {
    let all = connections(|limits| (limits.connections, limits.unwritten) = (3, 10_000));
    let tickets = [0, 1, 2].map(|_| all.admit(Instant::now()).expect("a place"));
    let exchanges: Vec<_> = tickets.iter().map(|ticket| ticket.requests().begin(Version::HTTP_2)).collect();
    // The first one shares what it has with others: closing it would give nothing back.
    exchanges[0].add(5000, 0);
    exchanges[0].given();
    for exchange in &exchanges[1..] {
        exchange.add(5000, 5000);
        exchange.given();
    }
    exchanges[2].add(100, 100);
    all.relieve(Instant::now());
    assert!(!tickets.iter().any(is_closed), "no connection has waited for long");
    let later = Instant::now() + STALLED;
    all.relieve(later);
    assert_eq!(tickets.each_ref().map(is_closed), [false, true, false]);
    all.sweep(later);
    assert!(!is_closed(&tickets[2]), "what is being closed is on its way back");
}

#[tokio::test]
async fn further_requests_wait_while_much_is_to_be_written_on_their_connection() {
    let all = connections(|limits| limits.unwritten_each = 1000);
    let ticket = all.admit(Instant::now()).expect("a place");
    let [first, second] = [0, 1].map(|_| ticket.requests().begin(Version::HTTP_2));
    assert!(first.turn().await);
    first.add(1001, 0);
    let mut turn = Box::pin(second.turn());
    assert!(futures_util::FutureExt::now_or_never(turn.as_mut()).is_none());
    first.subtract(1, 0);
    assert!(turn.await);
    first.add(1, 0);
    let turn = second.turn();
    drop(ticket);
    assert!(!turn.await, "the connection is gone");
}

#[tokio::test]
async fn while_much_is_to_be_written_on_all_connections_those_wait_that_have_not_read() {
    let all = connections(|limits| limits.unwritten = 10_000);
    let [unread, reading] = [0, 1].map(|_| all.admit(Instant::now()).expect("a place"));
    let first = unread.requests().begin(Version::HTTP_2);
    assert!(first.turn().await);
    first.add(10_001, 10_001);
    let second = reading.requests().begin(Version::HTTP_2);
    assert!(second.turn().await, "its client has read everything");
    second.add(1, 1);
    let third = reading.requests().begin(Version::HTTP_2);
    let mut turn = Box::pin(third.turn());
    assert!(futures_util::poll!(&mut turn).is_pending());
    first.subtract(2, 2);
    assert!(turn.await, "there is less now");
}

#[tokio::test]
async fn shared_buffers_count_on_their_connection_only() {
    let all = connections(|_| ());
    let [much, little] = [0, 1].map(|_| all.admit(Instant::now()).expect("a place"));
    let begin = |ticket: &Ticket| ticket.requests().begin(Version::HTTP_2);
    let document = Bytes::from(vec![b'x'; 100 << 20]);
    let shared = SharedBody { besides: 1000 };
    let unread = ResponseBody::new(document.clone().into(), Some(&shared), begin(&much));
    assert_eq!(all.unwritten.load(Ordering::Relaxed), 1000);
    let further = begin(&much);
    let mut turn = Box::pin(further.turn());
    assert!(futures_util::poll!(&mut turn).is_pending(), "its client has much to read");
    let exchange = begin(&little);
    assert!(exchange.turn().await);
    let body = ResponseBody::new(document.clone().into(), Some(&shared), exchange);
    assert_eq!(body.collect().await.expect("whole").to_bytes(), document);
    drop(unread);
    assert!(turn.await);
    assert_eq!(all.unwritten.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_response_larger_than_the_limit_arrives_whole() {
    let all = connections(|_| ());
    let [unread, reading] = [0, 1].map(|_| all.admit(Instant::now()).expect("a place"));
    let begin = |ticket: &Ticket| ticket.requests().begin(Version::HTTP_2);
    let text = Bytes::from(vec![b'x'; 70 << 20]);
    let _unread = ResponseBody::new(text.clone().into(), None, begin(&unread));
    let exchange = begin(&reading);
    assert!(exchange.turn().await, "its client has read everything");
    let body = ResponseBody::new(text.clone().into(), None, exchange);
    assert_eq!(body.collect().await.expect("whole").to_bytes(), text);
}

#[test]
fn a_connection_of_the_reserve_is_one_like_others_when_there_is_a_place_again() {
    let all = connections(|limits| (limits.connections, limits.reserve) = (1, 1));
    let now = Instant::now();
    let busy = all.admit(now).expect("a place");
    let request = busy.requests().begin(Version::HTTP_2);
    let reserved = all.admit(now).expect("the reserve");
    drop(reserved.requests().begin(Version::HTTP_2));
    assert!(reserved.connection.reserved());
    drop((request, busy));
    drop(reserved.requests().begin(Version::HTTP_2));
    assert!(!reserved.connection.reserved());
}
