#!/bin/sh
# Looks for input that breaks the parsers of what strangers send: `fuzz/run.sh [SECONDS]`, for each target (60), all at
# once. Coverage comes from the compiler's own sanitizer pass, which the stable toolchain
# has: no other toolchain and no cargo plugin is needed. Input that breaks something is kept in fuzz/found/.
set -eu
cd "$(dirname "$0")"
seconds=${1:-60}
export CARGO_TARGET_DIR=../target/fuzz
RUSTFLAGS='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1' \
    cargo build --release --quiet --target "$(rustc -vV | sed -n 's/^host: //p')"
built=$(ls -d ../target/fuzz/*-linux-*/release)
targets=$(sed -n 's|^path = "targets/\(.*\).rs"|\1|p' Cargo.toml)
mkdir -p found
one() {
    mkdir -p "../target/fuzz/corpus/$1"
    echo "fuzz: $1 for $seconds s"
    "$built/$1" -max_total_time="$seconds" -max_len=1500 -timeout=1 -rss_limit_mb=512 -verbosity=0 \
        -artifact_prefix="found/$1-" -print_final_stats=1 "../target/fuzz/corpus/$1" >"../target/fuzz/$1.log" 2>&1 ||
        { cat "../target/fuzz/$1.log"; echo "fuzz: $1 FAILED"; return 1; }
    grep -h 'number_of_executed_units' "../target/fuzz/$1.log" | sed "s/^/fuzz: $1 /"
}
pids=
for target in $targets; do
    one "$target" &
    pids="$pids $!"
done
for pid in $pids; do wait "$pid"; done
