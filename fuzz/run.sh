#!/bin/sh
# Looks for input that breaks the parsers of what strangers send: `fuzz/run.sh [SECONDS]` (60), divided among the targets,
# as many at once as there are processors. Coverage comes from the compiler's own sanitizer pass, which the stable
# toolchain has: no other toolchain and no cargo plugin is needed. Input that breaks something is kept in fuzz/found/.
set -eu
cd "$(dirname "$0")"
export CARGO_TARGET_DIR=../target/fuzz

# `fuzz/run.sh target NAME SECONDS`: one target, already built.
if [ "${1:-}" = target ]; then
    name=$2 seconds=$3 log=../target/fuzz/$2.log
    mkdir -p "../target/fuzz/corpus/$name"
    seeds=
    [ ! -d "seeds/$name" ] || seeds=seeds/$name
    # A unit may take a second; a machine that is busy with other things makes several of it.
    "$CARGO_TARGET_DIR"/*-linux-*/release/"$name" -max_total_time="$seconds" -max_len=4096 -timeout=5 -rss_limit_mb=512 \
        -verbosity=0 -artifact_prefix="found/$name-" -print_final_stats=1 "../target/fuzz/corpus/$name" $seeds >"$log" 2>&1 ||
        { cat "$log"; echo "fuzz: $name FAILED"; exit 1; }
    echo "fuzz: $name $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s"
    exit
fi

RUSTC_WRAPPER=$PWD/rustc.sh cargo build --release --quiet --target "$(rustc -vV | sed -n 's/^host: //p')"
targets=$(sed -n 's|^path = "targets/\(.*\).rs"|\1|p' Cargo.toml)
count=$(echo "$targets" | wc -l)
processors=$(nproc)
[ "$processors" -le "$count" ] || processors=$count
share=$((${1:-60} * processors / count))
mkdir -p found
echo "$targets" | xargs -P "$processors" -I NAME ./run.sh target NAME $((share > 0 ? share : 1))
