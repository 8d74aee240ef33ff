"""Where a request comes from, as little of it as detection needs: a network, not an address."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from spiritsafe.errors import BadInput
from spiritsafe.serve._call import Client
from spiritsafe.serve._http import Scope

if TYPE_CHECKING:
    from maxminddb import Reader

__all__ = ["Peers"]

_MOST_AGENT = 200
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Peers:
    """Reads clients off requests.

    trusted_proxies: networks whose `X-Forwarded-For` is believed. From others it is ignored: anyone can send it.
    asn_database: file in MaxMind's DB format that says which autonomous system an address belongs to.

    Raises:
        ValueError: one of `trusted_proxies` is no network.
        BadInput: the file cannot be read, or is of another kind.
    """

    def __init__(self, trusted_proxies: Sequence[str], asn_database: Path | None = None) -> None:
        self._trusted: tuple[_Network, ...] = tuple(
            ipaddress.ip_network(proxy, strict=False) for proxy in trusted_proxies
        )
        self._systems = None if asn_database is None else _open(asn_database)
        self._place = lru_cache(maxsize=4096)(self._look_up)

    def client(self, scope: Scope) -> Client:
        """The client's network (/24 or /48), its autonomous system, and its user agent."""
        agent = forwarded = None
        for name, value in scope["headers"]:
            if name == b"user-agent":
                agent = value[:_MOST_AGENT].decode("latin-1")
            elif name == b"x-forwarded-for" and self._trusted:
                forwarded = value if forwarded is None else forwarded + b"," + value
        address = scope["client"][0] if scope.get("client") else ""
        if forwarded is not None:
            address = self._through_proxies(address, forwarded.decode("latin-1"))
        return Client(*self._place(address), agent)

    def close(self) -> None:
        """Close the database."""
        if self._systems is not None:
            self._systems.close()

    def _look_up(self, address: str) -> tuple[str | None, int | None]:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return None, None
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        length = 24 if parsed.version == 4 else 48
        return str(ipaddress.ip_network((parsed, length), strict=False)), self._asn(parsed)

    def _asn(self, address: _Address) -> int | None:
        if self._systems is None or (address.version == 6 and self._systems.metadata().ip_version == 4):
            return None
        found = self._systems.get(address)
        number = found.get("autonomous_system_number") if isinstance(found, dict) else None
        return number if isinstance(number, int) else None

    def _through_proxies(self, address: str, forwarded: str) -> str:
        """The last hop that is no trusted proxy (each proxy appends the one it heard from)."""
        for hop in [*reversed(forwarded.split(","))]:
            if not self._is_trusted(address):
                break
            address = hop.strip()
        return address

    def _is_trusted(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)


def _open(path: Path) -> Reader:
    import maxminddb

    try:
        reader = maxminddb.open_database(path)
    except OSError as error:
        raise BadInput(
            f"asn_database {path}: cannot be read ({error.strerror}); download it, or leave it out"
        ) from None
    except (maxminddb.InvalidDatabaseError, ValueError):
        raise BadInput(f"asn_database {path}: this is no MaxMind DB; name a file such as GeoLite2-ASN.mmdb") from None
    if "ASN" not in (kind := reader.metadata().database_type).upper():
        reader.close()
        raise BadInput(
            f"asn_database {path}: it holds {kind}, not autonomous systems; name one such as GeoLite2-ASN.mmdb"
        )
    return reader
