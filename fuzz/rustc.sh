#!/bin/sh
# rustc for the fuzz targets: counts coverage in the parsers that are looked at and in nothing else, which makes the
# first build half as long and each run faster. Cargo does not know of this list: remove target/fuzz after changing it.
set -eu
case " $* " in
*' --crate-name build_script_'*) ;;
*' --crate-name scouter_net '* | *' --crate-name domain '* | *' --crate-name maxminddb '* | *' --crate-name x509_parser '* | \
    *' --crate-name asn1_rs '* | *' --crate-name der_parser '* | *' --crate-name pnet_packet '* | *' targets/'*)
    set -- "$@" -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$@"
