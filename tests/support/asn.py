"""Writes a database of the GeoLite2-ASN layout for the tests: asn.py FILE FIRST_NUMBER [DATABASE_TYPE]"""

import sys

from mmdb_writer import MMDBWriter
from netaddr import IPSet

file, first = sys.argv[1], int(sys.argv[2])
kind = sys.argv[3] if len(sys.argv) > 3 else "GeoLite2-ASN"
writer = MMDBWriter(6, kind, languages=["en"], description="for tests", ipv4_compatible=True, int_type="u32")
networks = ["10.80.1.0/24", "10.80.2.0/24", "203.0.113.0/24", "10.81.0.0/24", "fd80::/32", "2001:db8:5::/48", "192.0.2.0/25"]
for place, network in enumerate(networks):
    number = first + place
    writer.insert_network(
        IPSet([network]), {"autonomous_system_number": number, "autonomous_system_organization": f"Lab network {number}"}
    )
writer.to_db_file(file)
