"""Where requests come from: the network and its autonomous system, through proxies that are believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

import mock_api
from guard_kit import guard_config, guarding
from spiritsafe.errors import BadInput
from spiritsafe.serve._check import check_guard
from spiritsafe.serve._peer import Peers
from test_gateway import chat


def database(path: Path, systems: dict[str, int], *, version: int = 6, kind: str = "GeoLite2-ASN") -> Path:
    """A MaxMind DB of these networks."""
    writer = MMDBWriter(ip_version=version, database_type=kind, ipv4_compatible=version == 6, int_type="u32")
    for network, number in systems.items():
        found = {"autonomous_system_number": number, "autonomous_system_organization": f"AS {number}"}
        writer.insert_network(IPSet([network]), found)
    writer.to_db_file(str(path))
    return path


def test_the_ledger_has_each_clients_network_and_system(tmp_path: Path) -> None:
    file = database(tmp_path / "asn.mmdb", {"192.0.2.0/25": 64500, "2001:db8::/32": 4_200_000_000})
    hops = ["192.0.2.7", "192.0.2.200", "2001:db8:1::9", "::ffff:192.0.2.7", "nonsense"]
    with mock_api.mock_api() as upstream:
        config = guard_config(
            tmp_path, upstream.base_url, asn_database=str(file), trusted_proxies=["127.0.0.1/32", "203.0.113.0/24"]
        )
        with guarding(config) as guard:
            client = guard.client(guard.new_key())
            for hop in hops:
                chat(client, extra_headers={"x-forwarded-for": f"198.51.100.1, {hop}, 203.0.113.5"})
            seen = [(row["ip_prefix"], row["asn"]) for row in guard.rows()]
    assert seen == [
        ("192.0.2.0/24", 64500),
        ("192.0.2.0/24", None),
        ("2001:db8:1::/48", 4_200_000_000),
        ("192.0.2.0/24", 64500),
        (None, None),
    ]


def test_a_database_of_old_addresses_knows_no_new_ones(tmp_path: Path) -> None:
    peers = Peers((), database(tmp_path / "asn.mmdb", {"192.0.2.0/24": 64500}, version=4))
    clients = [peers.client({"headers": (), "client": (address, 1)}) for address in ("192.0.2.7", "2001:db8::1")]
    peers.close()
    assert [(client.ip_prefix, client.asn) for client in clients] == [("192.0.2.0/24", 64500), ("2001:db8::/48", None)]


@pytest.mark.parametrize("what", ["absent", "text", "cities"])
async def test_a_file_that_is_no_such_database_is_named(tmp_path: Path, what: str) -> None:
    file, said = tmp_path / "asn.mmdb", {"absent": "cannot be read", "text": "no MaxMind DB", "cities": "GeoLite2-City"}
    if what == "text":
        file.write_text("network,autonomous_system_number\n" * 9000)
    if what == "cities":
        database(file, {"192.0.2.0/24": 1}, kind="GeoLite2-City")
    with pytest.raises(BadInput, match=said[what]):
        Peers((), file)
    found = await check_guard(guard_config(tmp_path, "http://127.0.0.1:1/v1", asn_database=str(file)))
    (finding,) = [finding for finding in found if finding.what == "asn_database"]
    assert finding.level == "error" and said[what] in finding.message
