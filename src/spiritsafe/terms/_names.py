"""Host and model names, reduced to a form in which spelling tricks no longer matter, and patterns over them.

A model name is split into segments at `/` and `--`, and each segment into tokens: runs of letters, runs of digits, and
sizes such as 8b. Separators, case and Unicode width are gone, so `meta-llama/Llama-3.1-8B`, `llama3.1:8b` and
`llama-v3p1-8b` agree.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote

__all__ = ["Host", "ModelMatch", "find_models", "host_matches", "host_pattern", "model_pattern", "parse_host"]

_SIZE = r"(?:\d+x)?\d+(?:\.\d+)?(?:bit|[bmk])(?![^\W_])"
_TOKEN = re.compile(rf"{_SIZE}|\d+|[^\W\d_]+")
_PATTERN_TOKEN = re.compile(rf"{_SIZE}|\d+|\*?[^\W\d_]+\*?|\*")
_DOTS = str.maketrans("。．｡", "...")
_LABELS = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_OWN_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa")
_OWN_NETWORKS = tuple(
    ipaddress.ip_network(net)
    for net in (
        *("0.0.0.0/32", "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("100.64.0.0/10", "::/128", "::1/128", "fc00::/7", "fe80::/10"),
    )
)


@dataclass(frozen=True, slots=True)
class Host:
    """A host as the registry sees it. `own`: loopback, a private network, or no host at all (local weights)."""

    name: str
    kind: Literal["own", "public", "malformed"]


def parse_host(text: str | None) -> Host:
    """The host in a host name, `host:port` or URL, in lower-case ASCII, without user, port and trailing dot.

    What could be read in two ways (a backslash, two `@`, spaces) is `malformed`, never `own`.
    """
    if text is None:
        return Host("", "own")
    if re.search(r"[\s\\\x00-\x1f\x7f]", text) or not text:
        return Host(text, "malformed")
    rest = re.split(r"[/?#]", text.split("://", 1)[-1], maxsplit=1)[0]
    user, _, name = rest.rpartition("@")
    if "@" in user:
        return Host(text, "malformed")
    if bracketed := re.fullmatch(r"\[([^\]]+)\](?::\d*)?", name):
        name = bracketed[1]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    name = unicodedata.normalize("NFKC", unquote(name).translate(_DOTS)).lower().rstrip(".")
    if address := _address(name):
        own = any(address in net for net in _OWN_NETWORKS if net.version == address.version)
        return Host(str(address), "own" if own else "public")
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            return Host(text, "malformed")
    if not _LABELS.fullmatch(name):
        return Host(text, "malformed")
    own = "." not in name or name.endswith(_OWN_SUFFIXES)
    return Host(name, "own" if own else "public")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        # What the C library takes for an address as well: 127.1, 0x7f000001, 2130706433.
        if not re.fullmatch(r"(?:0x[0-9a-f]+|\d+)(?:\.(?:0x[0-9a-f]+|\d+)){0,3}", name):
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(name))
        except OSError:
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=1024)
def host_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a domain: it covers itself and its subdomains; `*` stands for part of a label, or for whole labels.

    Raises:
        ValueError: not a domain, or so wide that it would cover a top-level domain.
    """
    labels = pattern.split(".")
    if not re.fullmatch(r"[a-z0-9*_-]+(\.[a-z0-9*_-]+)*", pattern) or "*" in "".join(labels[-2:]):
        raise ValueError(f"host {pattern!r}: write a domain such as api.example.com or *.example.com")
    parts = [r"[^.]+(?:\.[^.]+)*" if label == "*" else re.escape(label).replace(r"\*", "[^.]*") for label in labels]
    return re.compile(r"(?:.+\.)?" + r"\.".join(parts))


def host_matches(pattern: str, host: Host) -> bool:
    return host.kind != "malformed" and bool(host_pattern(pattern).fullmatch(host.name))


def _segments(name: str) -> list[str]:
    """Each segment as -token-token-, so that a pattern is a search for -token-token."""
    text = unicodedata.normalize("NFKC", unquote(name))
    text = "".join(c for c in text if unicodedata.category(c) != "Cf").casefold()
    segments = (_TOKEN.findall(_versions(part)) for part in re.split(r"[/\\]|--", text))
    return ["-" + "-".join(tokens) + "-" for tokens in segments if tokens]


def _versions(text: str) -> str:
    """v3 → 3 and 3p1 → 3.1, as some hosts write versions."""
    text = re.sub(r"(?<![^\W\d_])v(?=\d)", "", text)
    return re.sub(r"(?<=\d)p(?=\d)", ".", text)


@lru_cache(maxsize=1024)
def model_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a model pattern such as `llama-3.1`, `gpt-4*`, `*claude*`, `qwen-2.5-*-3b`, `^o1*`.

    It is found anywhere in a segment (`^`: at its start) and not before a further version number, so `llama-3` is not
    found in llama-3.1. A `*` on a word extends it, a `*` of its own between tokens skips any number of them, and a `*`
    at the end lets anything follow, version numbers included.

    Raises:
        ValueError: it names nothing, so it would match every model.
    """
    tokens = _PATTERN_TOKEN.findall(_versions(pattern.casefold().removeprefix("^")))
    named = [t for t in tokens if t.strip("*")]
    if not named or not tokens[0].strip("*"):
        raise ValueError(f"model {pattern!r}: name at least one word, and begin with it")
    open_end = tokens[-1].endswith("*")
    if tokens[-1] == "*":
        tokens = tokens[:-1]
    body = ""
    for word in tokens:
        body += r"(?:-[^-]+)*?" if word == "*" else "-" + re.escape(word).replace(r"\*", r"[^-\d]*")
    version_follows = r"" if open_end or re.fullmatch(_SIZE, tokens[-1]) else r"(?!-\d{1,2}-)"
    start = "^" if pattern.startswith("^") else ""
    return re.compile(f"{start}{body}(?=-){version_follows}")


@dataclass(frozen=True, slots=True)
class ModelMatch:
    """Where `pattern` was found in a name: segment number and span in the segment."""

    pattern: str
    segment: int
    start: int
    end: int
    text: str

    def hides(self, other: ModelMatch) -> bool:
        """True if this match is the more specific reading of what `other` matched: longer, or no wildcard."""
        if len(self.text) == len(other.text):
            same = (self.segment, self.start) == (other.segment, other.start)
            return same and "*" in other.pattern and "*" not in self.pattern
        if len(self.text) < len(other.text):
            return False
        if self.segment == other.segment:
            return self.start <= other.start and other.end <= self.end
        return model_pattern(other.pattern).search(self.text + "-") is not None


def find_models(patterns: tuple[str, ...], name: str) -> list[ModelMatch]:
    """Every place where one of `patterns` is found in a model name or path."""
    return [
        ModelMatch(pattern, number, found.start(), found.end(), found.group())
        for number, segment in enumerate(_segments(name))
        for pattern in patterns
        for found in model_pattern(pattern).finditer(segment)
    ]
