"""Where a request comes from, as little of it as detection needs: a network, not an address."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from spiritsafe.serve._call import Client
from spiritsafe.serve._http import Scope

__all__ = ["Peers"]

_MOST_AGENT = 200
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Peers:
    """Reads clients off requests.

    trusted_proxies: networks whose `X-Forwarded-For` is believed. From others it is ignored: anyone can send it.
    """

    def __init__(self, trusted_proxies: Sequence[str]) -> None:
        self._trusted: tuple[_Network, ...] = tuple(
            ipaddress.ip_network(proxy, strict=False) for proxy in trusted_proxies
        )
        self._prefix = lru_cache(maxsize=4096)(_prefix)

    def client(self, scope: Scope) -> Client:
        """The client's network (/24 or /48) and user agent."""
        agent = forwarded = None
        for name, value in scope["headers"]:
            if name == b"user-agent":
                agent = value[:_MOST_AGENT].decode("latin-1")
            elif name == b"x-forwarded-for" and self._trusted:
                forwarded = value if forwarded is None else forwarded + b"," + value
        address = scope["client"][0] if scope.get("client") else ""
        if forwarded is not None:
            address = self._through_proxies(address, forwarded.decode("latin-1"))
        return Client(self._prefix(address), agent)

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


def _prefix(address: str) -> str | None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    length = 24 if parsed.version == 4 else 48
    return str(ipaddress.ip_network((parsed, length), strict=False))
