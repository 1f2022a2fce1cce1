#!/bin/sh
# Which crates may be used: licences, sources, bans (deny.toml), and known vulnerabilities.
set -eu
cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null; then
    echo 'setup: installing cargo-deny (Rust, some minutes): to check the crates that are used'
    # Unoptimised: it compiles in half the time, and runs for a second.
    cargo install --quiet --locked --debug cargo-deny
fi
cargo deny --log-level error check --hide-inclusion-graph bans licenses sources
# The advisories are a database of their own, which is not on any package registry.
if timeout 60 cargo deny --log-level off fetch db >/dev/null 2>&1; then
    cargo deny --log-level error check --hide-inclusion-graph advisories
else
    printf '\nSKIPPED advisories: the database of known vulnerabilities cannot be fetched here\n\n' >&2
    # `tests/run.sh` counts it, and decides whether CI accepts it.
    if [ -n "${SCOUTER_SKIPS:-}" ]; then
        echo 'advisories: the database of known vulnerabilities cannot be fetched here' >>"$SCOUTER_SKIPS"
    elif [ -n "${CI:-}" ]; then
        exit 1
    fi
fi
