#!/bin/sh
# Serves what `make run` built, with settings to try it out on one machine, and prints a first request.
set -eu
cd "$(dirname "$0")"
export API_PORT="${API_PORT:-8000}"
if [ -z "${SCOUTER_API_SECRET:-}${SCOUTER_API_SECRET_FILE:-}" ]; then
    SCOUTER_API_SECRET=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
    export SCOUTER_API_SECRET
fi
if [ -z "${SCOUTER_TARGETS_ALLOW:-}" ]; then
    # Without this only globally reachable addresses may be probed, and the first request could not be tried offline.
    export SCOUTER_TARGETS_ALLOW=127.0.0.0/8,::1
fi
cat <<TEXT

Try it (the secret is ${SCOUTER_API_SECRET_FILE:+in $SCOUTER_API_SECRET_FILE}${SCOUTER_API_SECRET:-}; targets allowed besides public ones: $SCOUTER_TARGETS_ALLOW):

  curl -s 'http://127.0.0.1:$API_PORT/api/v1.0/tests?wait=20' \\
    -H 'Authorization: ${SCOUTER_API_SECRET:-<secret>}' -H 'Content-Type: application/json' \\
    -d '{"ping": [{"dst": "127.0.0.1", "count": 3}],
         "dns_lookup": [{"qname": "example.com"}],
         "http_request": [{"url": "http://127.0.0.1:$API_PORT/healthz"}]}'

TEXT
exec target/release/scouter serve
