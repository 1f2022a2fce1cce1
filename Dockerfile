# Scouter at the edge. Two images:
#
#   docker build -t scouter .                    with Chromium and Firefox (the default)
#   docker build -t scouter:slim --target slim . without browsers: the program, its libraries, and nothing else
#
# Both run as user 10001, with a root file system that may be read-only. The program has CAP_NET_RAW as a file
# capability, permitted only: it uses it where the container has it, and does without where not.

FROM rust:1.95-slim-bookworm AS build
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev libcap2-bin tini \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# The toolchain that the project pins, with the target that plugins are built for.
COPY rust-toolchain.toml ./
RUN rustc --version
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo plugins --locked && cargo build --locked --release \
    && mkdir -p /out/opt/scouter/plugins && cp target/release/scouter /out/opt/scouter/ \
    && for plugin in plugins/*; do cp "target/wasm32-wasip2/plugin/${plugin#plugins/}.wasm" /out/opt/scouter/plugins/; done
# Plugins are compiled here, so that a start takes milliseconds. Beside the program: what it links with, trust anchors, an
# init that reaps, and a name for its user.
RUN SCOUTER_CACHE_DIR=/out/opt/scouter/cache /out/opt/scouter/scouter plugins >/dev/null \
    && chmod -R a+rX /out/opt/scouter && setcap cap_net_raw+p /out/opt/scouter/scouter \
    && ldd /out/opt/scouter/scouter | grep -o '/[^ ]*' | while read -r library; do cp -L --parents "$library" /out; done \
    && mkdir -p /out/usr/bin /out/etc/ssl/certs /out/tmp && chmod 1777 /out/tmp \
    && cp /usr/bin/tini-static /out/usr/bin/tini && cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ \
    && echo 'scouter:x:10001:10001:Scouter:/tmp:/nonexistent' > /out/etc/passwd \
    && echo 'scouter:x:10001:' > /out/etc/group

FROM scratch AS slim
COPY --from=build /out /
ENV PATH=/opt/scouter:/usr/bin HOME=/tmp SCOUTER_CACHE_DIR=/opt/scouter/cache SCOUTER_MMDB_PATH=/tmp/GeoLite2-ASN.mmdb
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["scouter", "health"]
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/scouter/scouter"]

FROM debian:bookworm-slim
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates chromium firefox-esr fonts-liberation tini \
    && rm -rf /var/lib/apt/lists/* \
    && echo 'scouter:x:10001:10001:Scouter:/tmp:/nonexistent' >> /etc/passwd && echo 'scouter:x:10001:' >> /etc/group
COPY --from=build /out/opt/scouter /opt/scouter
ENV PATH=/opt/scouter:/usr/local/bin:/usr/bin:/bin HOME=/tmp \
    SCOUTER_CACHE_DIR=/opt/scouter/cache SCOUTER_MMDB_PATH=/tmp/GeoLite2-ASN.mmdb
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["scouter", "health"]
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/scouter/scouter"]
