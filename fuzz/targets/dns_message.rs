//! DNS answers (RFC 1035): nothing panics or loops, and what is taken for an answer belongs to the question.

#![no_main]

use std::cell::LazyCell;
use std::time::Duration;

use scouter_net::dns::{Query, Question, Transport, parse};

/// Of the additional section of a question: an OPT record.
const OPT: usize = 11;

thread_local! {
    static QUERY: LazyCell<Query> = LazyCell::new(|| {
        let question = Question { name: "www.example.com".into(), rtype: "A".into(), class: "IN".into() };
        Query::of(&question).expect("a question")
    });
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    QUERY.with(|query| {
        let check = |reply: &[u8]| {
            let accepted = query.accepts(reply);
            for transport in [Transport::Udp, Transport::Tcp] {
                let Ok(answer) = parse(query, reply, transport, Duration::ZERO) else { continue };
                assert_eq!(answer.size as usize, reply.len());
                assert!(accepted || reply[..2] != query.bytes[..2]);
                for record in answer.answers.iter().chain(&answer.authorities).chain(&answer.additionals) {
                    assert!(usize::from(record.data_length) <= reply.len());
                    assert!(record.name.ends_with('.') && !record.data.chars().any(char::is_control), "{record:?}");
                }
            }
        };
        // Anything.
        check(data);
        // An answer to the question, with flags, counts and records of the input.
        let Some((head, records)) = data.split_at_checked(8) else { return };
        let question = &query.bytes[..query.bytes.len() - OPT];
        let mut reply = question.to_vec();
        reply[2..4].copy_from_slice(&head[..2]);
        reply[2] |= 0x80;
        // Few, so that sections end before the message more often than not.
        for (place, count) in [(7, head[2]), (9, head[3]), (11, head[4])] {
            reply[place] = count & 7;
        }
        reply.extend(records);
        check(&reply);
    });
});
