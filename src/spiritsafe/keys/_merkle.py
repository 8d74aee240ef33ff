"""The Merkle tree of RFC 6962 §2.1, over leaf hashes that are already made: SHA-256(0x01 ‖ left ‖ right) for a node."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = ["HASH_BYTES", "root_and_paths", "root_from_path"]

HASH_BYTES = 32


def root_and_paths(leaf_hashes: bytes, indices: Sequence[int] = ()) -> tuple[bytes, list[list[bytes]]]:
    """Root of the tree over N leaf hashes (N · 32 bytes, N ≥ 1), and the audit paths of some leaves, bottom up.

    RFC 6962 splits at the largest power of two below N; level by level, that is: pair neighbours, and a node without a
    neighbour moves up unchanged.
    """
    level, places = leaf_hashes, list(indices)
    paths: list[list[bytes]] = [[] for _ in places]
    sha256 = hashlib.sha256
    while len(level) > HASH_BYTES:
        for path, place in zip(paths, places, strict=True):
            sibling = (place ^ 1) * HASH_BYTES
            if sibling < len(level):
                path.append(level[sibling : sibling + HASH_BYTES])
        even = len(level) - len(level) % (2 * HASH_BYTES)
        nodes = [sha256(b"\x01" + level[i : i + 2 * HASH_BYTES]).digest() for i in range(0, even, 2 * HASH_BYTES)]
        level = b"".join(nodes) + level[even:]
        places = [place // 2 for place in places]
    return level, paths


def root_from_path(leaf_hash: bytes, index: int, leaves: int, path: Sequence[bytes]) -> bytes | None:
    """The root that this audit path leads to; None if it is not the length that leaf `index` of `leaves` has."""
    if not 0 <= index < leaves:
        return None
    node, last, remaining = leaf_hash, leaves - 1, list(path)
    while last > 0:
        if index % 2 or index < last:
            if not remaining:
                return None
            sibling = remaining.pop(0)
            pair = sibling + node if index % 2 else node + sibling
            node = hashlib.sha256(b"\x01" + pair).digest()
        index, last = index // 2, last // 2
    return None if remaining else node
