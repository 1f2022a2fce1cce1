#!/bin/bash
# Builds both container images from the Dockerfile, and uses them as an operator would: with docker, as README says.
#
# Where base images cannot be pulled, stand-ins under their names are made of Debian's packages and this machine's Rust
# toolchain; `SCOUTER_IMAGE_BASES=pull` takes the real ones. Everything lives under target/image, and what was started is
# stopped at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'image: %s\n' "$*"; }
fail() { printf 'image: FAILED: %s\n' "$*" >&2; exit 1; }
skip() {
    printf '\nSKIPPED image: the container images are not built: %s\n\n' "$*" >&2
    # `tests/run.sh` counts it, and decides whether CI accepts it.
    if [ -n "${SCOUTER_SKIPS:-}" ]; then
        echo "image: the container images are not built: $*" >>"$SCOUTER_SKIPS"
    elif [ -n "${CI:-}" ]; then
        exit 1
    fi
    exit 0
}

[ "$(id -u)" -eq 0 ] || skip 'it needs root'
./setup.sh image

folder=$PWD/target/image
mkdir -p "$folder"
socket=unix://$folder/docker.sock
docker() { command docker --host "$socket" "$@"; }

engine=
containers=()
finish() {
    for container in "${containers[@]}"; do docker rm --force "$container" >/dev/null 2>&1 || true; done
    if [ -n "$engine" ]; then
        kill "$engine" 2>/dev/null || true
        wait "$engine" 2>/dev/null || true
        [ "$bridged" = yes ] || ip link delete docker0 2>/dev/null || true
        # What is worth keeping for the next build is in its caches.
        buildah rmi --prune --force >/dev/null 2>&1 || true
        rm -rf "$folder/docker"
    fi
}
trap finish EXIT

# --- An engine of our own ---------------------------------------------------------------------------------------------
# Without packet filters, which not every kernel has, and without forwarding, which would stay on: published ports go
# through docker's own proxy.
bridged=$(ip link show docker0 >/dev/null 2>&1 && echo yes || echo no)
dockerd --host "$socket" --data-root "$folder/docker" --exec-root "$folder/run" --pidfile "$folder/docker.pid" \
    --iptables=false --ip6tables=false --ip-forward=false >"$folder/dockerd.log" 2>&1 &
engine=$!
for _ in $(seq 100); do
    docker version >/dev/null 2>&1 && break
    kill -0 "$engine" 2>/dev/null || { tail -3 "$folder/dockerd.log" >&2; engine=; skip 'dockerd does not run here'; }
    sleep 0.2
done
docker version >/dev/null || skip 'dockerd does not answer'

# --- Base images ------------------------------------------------------------------------------------------------------
have() { buildah inspect --type image "$1" >/dev/null 2>&1; }
debian=docker.io/library/debian:bookworm-slim
rust=$(sed -n 's/^FROM \(rust:[^ ]*\).*/docker.io\/library\/\1/p' Dockerfile)

standins() {
    if ! have "$debian"; then
        say "making a stand-in for $debian of Debian's packages"
        rm -rf "$folder/base"
        debootstrap --variant=minbase bookworm "$folder/base" >"$folder/debootstrap.log" 2>&1 ||
            { tail -5 "$folder/debootstrap.log" >&2; fail 'debootstrap'; }
        # Browsers come from the security archive, which the real image names too.
        local mirror
        mirror=$(awk '$1 == "deb" { print $2; exit }' "$folder/base/etc/apt/sources.list")
        printf 'deb %s bookworm main\ndeb %s bookworm-updates main\ndeb %s bookworm-security main\n' \
            "$mirror" "$mirror" "${mirror%/debian*}/debian-security" >"$folder/base/etc/apt/sources.list"
        rm -rf "$folder/base/var/cache/apt/archives" "$folder/base/var/lib/apt/lists"
        local container
        container=$(buildah from scratch)
        buildah add --quiet "$container" "$folder/base" / >/dev/null
        buildah config --cmd bash "$container"
        buildah commit --quiet --rm "$container" "$debian" >/dev/null
        rm -rf "$folder/base"
    fi
    if ! have "$rust"; then
        say "making a stand-in for $rust of this machine's toolchain"
        local container mount toolchain channel
        channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
        toolchain=$(dirname "$(dirname "$(rustup which --toolchain "$channel" rustc)")")
        container=$(buildah from --pull-never "$debian")
        mount=$(buildah mount "$container")
        mkdir -p "$mount/usr/local/rustup/toolchains/$channel-x86_64-unknown-linux-gnu" "$mount/usr/local/cargo/bin"
        tar -C "$toolchain" --exclude ./share -c . |
            tar -C "$mount/usr/local/rustup/toolchains/$channel-x86_64-unknown-linux-gnu" -x
        cp -L "$(command -v rustup)" "$mount/usr/local/cargo/bin/rustup"
        for name in cargo rustc rustdoc; do ln -s rustup "$mount/usr/local/cargo/bin/$name"; done
        # What this machine trusts, the build may trust.
        cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$mount/usr/local/cargo/machine-ca.pem"
        buildah umount "$container" >/dev/null
        buildah config --env RUSTUP_HOME=/usr/local/rustup --env CARGO_HOME=/usr/local/cargo \
            --env PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            --env CARGO_HTTP_CAINFO=/usr/local/cargo/machine-ca.pem --env RUSTUP_AUTO_INSTALL=0 "$container"
        buildah commit --quiet --rm "$container" "$rust" >/dev/null
    fi
}

pull=--pull-never
if [ "${SCOUTER_IMAGE_BASES:-}" = pull ]; then pull=--pull; else standins; fi

# --- Both images ------------------------------------------------------------------------------------------------------
build() {
    local name=$1 started=$SECONDS
    shift
    say "building $name"
    buildah bud --quiet $pull --format docker --network host --isolation chroot --layers --tag "$name" "$@" . >"$folder/build.log" 2>&1 ||
        { tail -30 "$folder/build.log" >&2; fail "$name is not built"; }
    rm -f "$folder/image.tar"
    buildah push --quiet "localhost/$name" "docker-archive:$folder/image.tar:$name"
    docker load --quiet --input "$folder/image.tar" >/dev/null
    rm -f "$folder/image.tar"
    say "$name: $(($(docker image inspect --format '{{.Size}}' "$name") / 1000000)) MB, built in $((SECONDS - started)) s"
}

build scouter:slim --target slim
size=$(docker image inspect --format '{{.Size}}' scouter:slim)
[ "$size" -lt 60000000 ] || fail "the slim image has $size bytes, more than 60 MB"
build scouter:latest

# --- As an operator uses them -----------------------------------------------------------------------------------------
secret=a-secret-for-the-image
# start NAME OPTION…: a container, its address in $api.
start() {
    local image=$1
    shift
    container=$(docker run --detach --env SCOUTER_API_SECRET=$secret --env SCOUTER_TARGETS_ALLOW=127.0.0.0/8 \
        --publish 127.0.0.1::8000 "$@" "$image")
    containers+=("$container")
    api=http://$(docker port "$container" 8000/tcp | head -1)
    for _ in $(seq 100); do
        curl -sf "$api/healthz" >/dev/null && return
        sleep 0.1
    done
    docker logs "$container" >&2
    fail "$image does not answer"
}
# run PAYLOAD: posts it and waits for the results.
run() {
    curl -sf --max-time 100 "$api/api/v1.0/tests?wait=90" -H "Authorization: $secret" -H 'Content-Type: application/json' -d "$1"
}
# holds TEXT EXPECTED…: or it has failed.
holds() {
    local text=$1 wanted
    shift
    for wanted in "$@"; do
        [[ $text == *"$wanted"* ]] || { docker logs "$container" | tail -40 >&2; fail "no $wanted in: ${text:0:3000}"; }
    done
}
# stop: SIGTERM, as docker stop sends it; the exit status is 0, and it did not take the 10 s after which it kills.
stop() {
    local started=$SECONDS
    docker stop --time 15 "$container" >/dev/null
    [ "$(docker inspect --format '{{.State.ExitCode}}' "$container")" = 0 ] || fail 'exit status after SIGTERM'
    [ $((SECONDS - started)) -lt 12 ] || fail 'it does not stop'
}
hardened=(--read-only --cap-drop ALL)
ping='{"ping": [{"dst": "127.0.0.1", "count": 2}], "traceroute": [{"dst": "127.0.0.1"}]}'

say 'slim: hardened, with CAP_NET_RAW'
start scouter:slim "${hardened[@]}" --cap-add NET_RAW
holds "$(run "$ping")" '"mode":"raw"' '"recv":2' '"reached":true'
log=$(docker logs "$container" 2>&1)
[[ $log != *'plugin compiled'* ]] || fail "plugins are compiled at the start: $log"
holds "$log" 'loaded=6 refused=0' 'mode="raw"'
[ "$(docker inspect --format '{{.Config.User}}' "$container")" = 10001:10001 ] || fail 'the user'
pid=$(docker inspect --format '{{.State.Pid}}' "$container")
grep -q '^Uid:.10001.10001' "/proc/$pid/status" || fail 'it does not run as user 10001'
docker exec "$container" scouter health || fail 'scouter health'
for _ in $(seq 60); do
    [ "$(docker inspect --format '{{.State.Health.Status}}' "$container")" = starting ] || break
    sleep 1
done
[ "$(docker inspect --format '{{.State.Health.Status}}' "$container")" = healthy ] || fail 'its health'
holds "$(run '{"browser_request": [{"url": "http://127.0.0.1:8000/healthz"}]}')" 'chrome is not installed on this host'
stop

say 'slim: no capability at all'
start scouter:slim "${hardened[@]}" --security-opt no-new-privileges
holds "$(run "$ping")" '"mode":"datagram"' '"recv":2' '"reached":true'
stop

say 'slim: no capability, and no ping sockets'
start scouter:slim "${hardened[@]}" --sysctl net.ipv4.ping_group_range='1 0'
holds "$(run "$ping")" 'no ICMPv4 socket'
holds "$(run '{"http_request": [{"url": "http://127.0.0.1:8000/healthz"}]}')" '"status":200'
stop

say 'slim: as root, without IPv6'
start scouter:slim --user 0 --sysctl net.ipv6.conf.all.disable_ipv6=1
holds "$(run "$ping")" '"mode":"raw"' '"recv":2'
stop

# Each in a new browser, and in the one that is warm.
both_browsers_load() {
    local result
    for _ in 1 2; do
        result=$(run "$pages")
        holds "$result" '"browser":"Chrome' '"browser":"Firefox' '"loaded":true'
        [[ $result != *'"failed":true'* ]] || fail "pages: $result"
    done
}
pages='{"browser_request": [{"url": "http://127.0.0.1:8000/docs"}, {"url": "http://127.0.0.1:8000/docs", "driver": "firefox"}]}'

say 'the default, as the README of the first version runs it'
api=http://127.0.0.1:8000
if curl -s -o /dev/null "$api"; then
    say 'port 8000 is taken on this machine: another one'
    start scouter
else
    container=$(docker run --detach --rm -e SCOUTER_API_SECRET=$secret -e SCOUTER_TARGETS_ALLOW=127.0.0.0/8 -p 8000:8000 scouter)
    containers+=("$container")
    for _ in $(seq 100); do curl -sf "$api/healthz" >/dev/null && break || sleep 0.1; done
fi
both_browsers_load
docker rm --force "$container" >/dev/null

say 'the default, hardened'
start scouter "${hardened[@]}" --cap-add NET_RAW --tmpfs /tmp:size=512m,mode=1777 --shm-size 256m --pids-limit 1000
both_browsers_load
# A process that has just ended is one for as long as its parent takes to notice; one that stays has no such parent.
dead() { docker top "$container" -eo pid,stat,comm | awk '$2 ~ /^Z/' | sort; }
before=$(dead)
sleep 3
stay=$(comm -12 <(echo "$before") <(dead) | grep . || true)
[ -z "$stay" ] || fail "zombies: $stay"
stop

say 'everything holds'
