#!/bin/sh
# Installs what is missing, and says what it does. `setup.sh` is for building and running, `setup.sh test` adds what
# the tests use: a network lab with real servers, and the tools whose answers ours are compared with; `setup.sh image` adds
# what builds and runs the container image.
set -eu
cd "$(dirname "$0")"

say() { printf 'setup: %s\n' "$*"; }

# Each line: command that must be there, Debian package that has it, why.
wanted() {
    echo 'cc gcc to compile the cryptography that Rust code calls'
    echo 'curl curl to send requests with'
    echo 'chromium chromium a browser for browser_request'
    echo 'firefox-esr firefox-esr another browser for browser_request'
    if [ "${1:-}" = test ]; then
        echo 'ip iproute2 to make network namespaces for the lab'
        echo 'ping iputils-ping to compare our pings with'
        echo 'traceroute traceroute to compare our traces with'
        echo 'mtr mtr-tiny to compare our traces with'
        echo 'g++ g++ to compile libFuzzer, which looks for input that breaks our parsers'
        echo 'dig bind9-dnsutils to compare our DNS answers with'
        echo 'openssl openssl to make the certificates of the lab'
        echo 'nsd nsd the DNS server of the lab'
        echo 'unbound unbound DNS over HTTPS in the lab'
        echo 'nginx nginx the web server of the lab'
        echo 'caddy caddy HTTP/3 in the lab'
        echo 'python3 python3-venv to run a DNS-over-QUIC server in the lab'
        echo 'faketime faketime to let the clock jump'
        echo 'setpriv util-linux to run the server without privileges'
    fi
    if [ "${1:-}" = image ]; then
        echo 'dockerd docker.io to run the container image'
        echo 'buildah buildah to build it'
        echo 'debootstrap debootstrap to make the image that it is built on, where none can be pulled'
    fi
    if [ "${1:-}" = bench ]; then
        wanted test
        echo 'wrk wrk to load the API'
        echo 'chromedriver chromium-driver to compare page loads with'
        echo 'prometheus-blackbox-exporter prometheus-blackbox-exporter to compare rates, CPU and memory with'
        echo 'fping fping to compare pings with'
        echo 'dnsperf dnsperf to compare DNS questions with'
        echo 'tcpdump tcpdump to capture packets: their timestamps are the reference for round-trip times'
    fi
}

if ! command -v rustup >/dev/null; then
    say 'rustup is missing: install Rust with it first (https is all it needs); it brings the toolchain that rust-toolchain.toml names'
    exit 1
fi
channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
if ! rustup +"$channel" target list --installed 2>/dev/null | grep -q '^wasm32-wasip2$'; then
    say "installing Rust $channel with the target wasm32-wasip2, which plugins are built for"
    rustup toolchain install "$channel" --profile minimal --component rustfmt --component clippy --target wasm32-wasip2
fi

missing=$(wanted "${1:-}" | while read -r command package why; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null || { say "installing $package: $why" >&2; echo "$package"; }
done)
# A compiler may be there without the C library's headers and start files: gcc only recommends their package.
if ! printf '#include <stdio.h>\nint main(void) { return 0; }\n' | cc -x c - -o /dev/null 2>/dev/null; then
    say 'installing libc6-dev: headers to compile C with'
    missing="$missing libc6-dev"
fi
# Debian's python3 may lack the module that makes virtual environments.
if [ "${1:-}" = test ] || [ "${1:-}" = bench ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
fi
if [ -n "$missing" ]; then
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        sudo=sudo
        command -v sudo >/dev/null || { say "not root and no sudo: install these yourself:" $missing; exit 1; }
    fi
    # The servers are started by the tests, in their own namespaces; Debian must not start them on this machine.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
        $sudo chmod 755 $policy
        trap '$sudo rm -f $policy' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    $sudo apt-get -qq update
    $sudo apt-get -qq -y --no-install-recommends install $missing >/dev/null
fi
if [ "${1:-}" = test ] || [ "${1:-}" = bench ]; then
    if [ ! -x target/lab-venv/bin/python ] || ! target/lab-venv/bin/python -c 'import aioquic, mmdb_writer, schemathesis' 2>/dev/null; then
        say 'installing aioquic, mmdb_writer and schemathesis (Python) into target/lab-venv: an independent QUIC implementation for the lab, a writer of ASN databases, and a tester of OpenAPI servers'
        python3 -m venv target/lab-venv
        target/lab-venv/bin/pip -q install --disable-pip-version-check 'aioquic==1.*' 'mmdb_writer==0.2.*' 'schemathesis==4.*'
    fi
fi
if [ "${1:-}" = bench ] && [ ! -x target/lab-venv/bin/termtosvg ]; then
    say 'installing termtosvg (Python) into target/lab-venv: to record the picture in README'
    target/lab-venv/bin/pip -q install --disable-pip-version-check 'termtosvg==1.*'
fi
if [ "${1:-}" = bench ] && [ ! -x target/bench-tools/bin/trip ]; then
    say 'installing trippy (Rust, some minutes of compiling) into target/bench-tools: to compare traces with'
    CARGO_TARGET_DIR=target/bench-tools/build timeout 1800 cargo install -q --locked --root target/bench-tools trippy@0.13.0 ||
        say 'trippy could not be installed: measurements go on without it, and their report says so'
    rm -rf target/bench-tools/build
fi
say 'everything needed is there'
