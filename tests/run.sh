#!/bin/bash
# Runs every check of this project, as `make test` and CI do, and ends with one line that counts them.
# `tests/run.sh STEP…` runs some of them: lint, unit, integration, fuzz, deny, image.
#
# A step that cannot run here (root, a package, the network) is skipped, which the last line names. Under CI a skip is a
# failure, unless SCOUTER_ALLOWED_SKIPS names it.
set -uo pipefail
cd "$(dirname "$0")/.."

# Step, minutes on two cores with everything compiled once, what it checks.
steps='lint 3 format, clippy, documentation
unit 2 unit tests of every crate
integration 8 API, sandbox, command line, and the lab: namespaces, real servers, real browsers
fuzz 2 parsers of untrusted input
deny 1 licences, sources and known vulnerabilities of crates
image 5 both container images, built and used'

if [ $# -gt 0 ]; then
    chosen=
    for step in "$@"; do
        line=$(grep "^$step " <<<"$steps") || { echo "test: there is no step '$step'; there are:" $(cut -d' ' -f1 <<<"$steps") >&2; exit 2; }
        chosen+=$line$'\n'
    done
    steps=${chosen%$'\n'}
fi

folder=$PWD/target/test
rm -rf "$folder"
mkdir -p "$folder"
# Steps add a line `NAME: REASON` for each thing that they skip.
export SCOUTER_SKIPS=$folder/skips
: >"$SCOUTER_SKIPS"

say() { printf '\ntest: %s\n' "$*"; }

lint() {
    cargo fmt --all --check &&
        cargo clippy --quiet --workspace --all-targets -- -D warnings &&
        RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items --quiet
}
# One choice of packages for all tests: with another one cargo chooses other features of their dependencies, and compiles
# those again.
tested='--workspace --exclude hostile'

unit() {
    # shellcheck disable=SC2086
    cargo test $tested --lib --bins && cargo test $tested --doc
}
integration() {
    local plugin
    mkdir -p target/debug/plugins target/debug/hostile
    for plugin in plugins/*; do
        cp "target/wasm32-wasip2/plugin/${plugin#plugins/}.wasm" target/debug/plugins/ || return
    done
    # shellcheck disable=SC2086
    cp target/wasm32-wasip2/plugin/hostile.wasm target/debug/hostile/ &&
        cargo test $tested --test integration
}
fuzz() { fuzz/run.sh; }
deny() { tests/deny.sh; }
image() { tests/image.sh; }

minutes=0
while read -r _ expected _; do minutes=$((minutes + expected)); done <<<"$steps"
say "about $minutes minutes on two cores, and as long again for what is compiled or installed the first time"
say 'plugins (built from source)'
cargo plugins --quiet || exit 1

number=0
failed=()
total=$(wc -l <<<"$steps")
while read -r step expected about <&3; do
    number=$((number + 1))
    say "[$number/$total] $step: $about (about $expected min)"
    started=$SECONDS
    if "$step" 2>&1 </dev/null | tee "$folder/$step.log"; then
        say "[$number/$total] $step: ok, $((SECONDS - started)) s"
    else
        failed+=("$step")
        say "[$number/$total] $step: FAILED, $((SECONDS - started)) s"
    fi
done 3<<<"$steps"

# `test result: ok. 46 passed; 0 failed; 2 ignored; …`; every other step counts as one.
# shellcheck disable=SC2002
sum() { cat "$folder"/{unit,integration}.log 2>/dev/null | sed -n "s/^test result:.* \([0-9]*\) $1.*/\1/p" | awk '{ n += $1 } END { print n + 0 }'; }
passed=$(($(sum passed) + $(grep -cvE '^(unit|integration) ' <<<"$steps")))
broken=$(sum failed)
for step in "${failed[@]}"; do
    case $step in
        unit | integration) [ "$broken" -gt 0 ] || broken=1 ;;
        *) broken=$((broken + 1)) passed=$((passed - 1)) ;;
    esac
done
# A step that skipped itself has not passed.
for step in $(cut -d' ' -f1 <<<"$steps"); do
    ! grep -q "^$step: " "$SCOUTER_SKIPS" || passed=$((passed - 1))
done
skips=$(($(wc -l <"$SCOUTER_SKIPS") + $(sum ignored)))
if [ "$skips" -gt 0 ]; then
    say "SKIPPED, and why:"
    sed 's/^/  /' "$SCOUTER_SKIPS"
fi
if [ -n "${CI:-}" ]; then
    while IFS=: read -r name _; do
        case " ${SCOUTER_ALLOWED_SKIPS:-} " in
            *" $name "*) ;;
            *)
                say "CI must run '$name'"
                broken=$((broken + 1))
                ;;
        esac
    done <"$SCOUTER_SKIPS"
    # Ignored tests are those that need root, which `root` names.
    if [ "$(sum ignored)" -gt 0 ] && ! grep -q '^root: ' "$SCOUTER_SKIPS"; then
        say "CI must run ignored tests"
        broken=$((broken + 1))
    fi
fi
say "$((SECONDS / 60)) min $((SECONDS % 60)) s${failed[*]:+; failed: ${failed[*]}}"
echo "test: $passed passed, $broken failed, $skips skipped"
[ "$broken" -eq 0 ] && [ ${#failed[@]} -eq 0 ]
