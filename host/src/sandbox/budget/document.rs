//! `docs/limits.md`, written from the numbers of the budget.

use std::fmt::Write;

use super::*;
use crate::sandbox::engine::{COMPILE_CPU, COMPILE_MEMORY, COMPILE_WALL, DESCRIBE_WALL, WASM_STACK};

/// `docs/limits.md`. `SCOUTER_WRITE_DOCS=1 cargo test -p scouter limits` writes it.
fn document() -> String {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let number = |number: u64| {
        let digits = number.to_string();
        let groups: Vec<&str> =
            digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("ASCII")).collect();
        groups.join(",")
    };
    let seconds = |time: Duration| format!("{} s", time.as_secs());
    let stopped = |limit: LimitHit| limit.to_string();
    let refused = |limit: Exceeded| format!("the call is refused: {limit}");
    let rows = [
        ("CPU time (of the guest's thread)", seconds(CPU), "cpu_limit", stopped(LimitHit::Cpu)),
        ("memory, all linear memories", mib(MEMORY_BYTES as u64), "memory_limit", stopped(LimitHit::Memory)),
        (
            "stack of the guest",
            format!("{} KiB", WASM_STACK >> 10),
            "stack_limit",
            "it called itself too deeply".into(),
        ),
        ("host calls", number(HOST_CALLS.into()), "host_call_limit", stopped(LimitHit::HostCalls)),
        (
            "bytes of all host calls, both ways",
            mib(HOST_CALL_BYTES as u64),
            "host_call_limit",
            stopped(LimitHit::HostCallBytes),
        ),
        (
            "bytes of one call to the host",
            format!("{} KiB", CALL_BYTES >> 10),
            "call_size_limit",
            "the call is too large".into(),
        ),
        ("handles of the host held", number(HOST_HANDLES as u64), "handle_limit", "it held too many handles".into()),
        ("log", format!("{} KiB", LOG_BYTES >> 10), "log_limit", stopped(LimitHit::Log)),
        (
            "result, and each partial result",
            format!("{} KiB", RESULT_BYTES >> 10),
            "bad_result",
            "the result is not taken".into(),
        ),
        (
            "values in a result, and in each partial result",
            number(RESULT_VALUES as u64),
            "bad_result",
            "the result is not taken".into(),
        ),
        ("time", "`SCOUTER_TEST_TIMEOUT` (120 s)".into(), "deadline", "it did not end in time".into()),
        ("targets", number(TARGETS as u64), "", refused(Exceeded::Targets)),
        ("names looked up", number(NAMES.into()), "", refused(Exceeded::Names)),
        ("packets", number(PACKETS.into()), "", refused(Exceeded::Packets)),
        (
            "packets in a second",
            format!("{}, burst of {}", number(PACKETS_PER_SECOND.get().into()), PACKET_BURST),
            "",
            "the host waits".into(),
        ),
        ("bytes received", mib(RECEIVED_BYTES), "", refused(Exceeded::Received)),
        ("concurrent sessions", number(SESSIONS as u64), "", refused(Exceeded::Sessions)),
    ];
    let mut text = String::from(
        "# Limits of one test\n\nA run that passes a limit of the sandbox is stopped: one failed test, with this `error`. A call that would pass a\n\
         limit of the network is refused with a typed error, and the plugin goes on. Generated from `host/src/sandbox/budget/`.\n\n\
         | what | limit | `error` | what happens |\n| --- | --- | --- | --- |\n",
    );
    for (what, limit, error, happens) in rows {
        let error = if error.is_empty() { String::new() } else { format!("`{error}`") };
        let _ = writeln!(text, "| {what} | {limit} | {error} | {happens} |");
    }
    let of = PACKETS_OF;
    let _ = write!(
        text,
        "\nA packet is {} bytes of IP at most: a larger probe counts as its fragments. A call that is no probe counts as: a name\n\
         {}, a reverse lookup {}, a DNS question {} over UDP and {} over a connection, an HTTP exchange {} and its request body, a page in a\n\
         browser {}. A target is an address, or the host of a URL and each address that it led to.\n",
        number(PACKET_BYTES.into()),
        of.lookup,
        of.reverse,
        of.question,
        of.connected_question,
        of.exchange,
        number(of.page.into()),
    );
    let _ = write!(
        text,
        "\n## Limits of a plugin file\n\nA file is {} at most. It is compiled in a child process with {} s of CPU time, {} s in all and {} GiB of memory;\n\
         `describe` has {} s, the limits above, and no import but WASI with nothing behind it. A component may have {} instances, {} memories,\n\
         {} tables of {} elements, and {} handles of its own.\n",
        mib(FILE_BYTES),
        COMPILE_CPU.as_secs(),
        COMPILE_WALL.as_secs(),
        COMPILE_MEMORY >> 30,
        DESCRIBE_WALL.as_secs(),
        INSTANCES,
        MEMORIES,
        TABLES,
        number(TABLE_ELEMENTS as u64),
        number(COMPONENT_HANDLES as u64),
    );
    text
}

#[test]
fn docs_limits_are_these_numbers() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/limits.md");
    if std::env::var_os("SCOUTER_WRITE_DOCS").is_some() {
        std::fs::write(&path, document()).expect("written");
    }
    assert_eq!(std::fs::read_to_string(&path).expect("docs/limits.md"), document());
}
