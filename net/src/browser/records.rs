//! The SOCKS proxy's records of a page's connections, matched with the requests that they were made for. Pure.

use std::collections::HashMap;

use super::collector::Entry;
use super::socks::Record;
use super::{Exchange, errors};

/// Marks of the browser and of the proxy differ by this at most for one moment, in milliseconds.
const CLOCK_MS: f64 = 5.0;

/// The proxy's part of each exchange: addresses, times of lookup and connection, causes of failure.
pub fn with_records(entries: Vec<Entry>, records: &[Record]) -> Vec<Exchange> {
    let mut used = vec![false; records.len()];
    let mut by_connection = HashMap::new();
    let mut done = Vec::with_capacity(entries.len());
    for mut entry in entries {
        let same = |record: &Record| record.port == entry.port && record.host.eq_ignore_ascii_case(&entry.host);
        let at = entry.connect_at.unwrap_or(entry.started);
        let nearest = |wanted: &dyn Fn(usize, &Record) -> bool| {
            let fitting = records.iter().enumerate().filter(|(place, record)| same(record) && wanted(*place, record));
            fitting.min_by(|(_, a), (_, b)| (a.asked_ms - at).abs().total_cmp(&(b.asked_ms - at).abs()))
        };
        let mut cause = None;
        let unanswered = (entry.error.is_some() || entry.exchange.open) && entry.exchange.status.is_none();
        // The two clocks are one, but a browser may round its marks.
        let since = |record: &Record| record.asked_ms + CLOCK_MS >= entry.started;
        let own = |place: usize, record: &Record| {
            !used[place] && if unanswered { since(record) } else { record.cause.is_none() }
        };
        if (unanswered || entry.connect_at.is_some())
            && let Some((place, record)) = nearest(&own)
        {
            used[place] = true;
            let timings = &mut entry.exchange.timings;
            (timings.dns, timings.connect) = (record.dns_ms, record.connect_ms);
            entry.exchange.remote = record.address.map(|address| (address, record.port));
            entry.exchange.attempts.clone_from(&record.attempts);
            cause = record.cause.as_ref();
            if let Some(id) = entry.connection {
                by_connection.insert(id, place);
            }
        } else {
            entry.exchange.timings.connect = None;
            if entry.exchange.status.is_some() {
                // Over a connection that there was already.
                let known = entry.connection.and_then(|id| by_connection.get(&id)).map(|place| &records[*place]);
                let record = known.or_else(|| nearest(&|_, record| record.connect_ms.is_some()).map(|(_, r)| r));
                entry.exchange.remote = record.and_then(|record| Some((record.address?, record.port)));
            }
        }
        entry.exchange.failure = entry.error.as_deref().map(|word| errors::failure(word, cause));
        done.push(entry.exchange);
    }
    done
}
