"""What is published about keys, and how a stranger checks it: no secret is needed here. The shape: design/keys.md.

    leaf = SHA-256(0x00 ‖ salt ‖ purpose, scheme, epoch, slot, key)        each with its length
    tree = RFC 6962 over: the epoch key, the coin key, account slots 0 … slots - 1        one tree an epoch and scheme
    root = SHA-256(0x02 ‖ format, key set, then each tree's epoch, scheme, slots, root)   each with its length

A purpose and slot have one place in a tree, and the root fixes how many trees there are: nobody can hide spare keys
among the leaves and open the luckiest, so a correction for `committed[purpose]` keys is a correction for all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from spiritsafe.config import StrictModel, parse_config
from spiritsafe.errors import BadInput
from spiritsafe.keys._derive import encode_fields, encode_slot
from spiritsafe.keys._file import MOST_BYTES, read_limited
from spiritsafe.keys._keyset import KeySetId, Name
from spiritsafe.keys._merkle import root_from_path

__all__ = [
    "SHARED",
    "Commitment",
    "Leaf",
    "Leaves",
    "Purpose",
    "Tree",
    "leaf_index",
    "load_commitment",
    "load_leaf",
    "load_leaves",
    "verify_leaf",
]

Purpose = Literal["epoch", "coin", "account"]
SHARED: Final[tuple[Purpose, ...]] = ("epoch", "coin")  # the leaves before the accounts'
_FORMAT = "spiritsafe-commitment/1"
_MOST_LEAVES = 64 << 20  # bytes: 40,000 keys of a tree of 2^20
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Tree(StrictModel):
    """One epoch's keys under one scheme: 2 + `slots` leaves."""

    epoch: Name
    scheme: Name
    slots: Annotated[int, Field(ge=1, le=2**32)]
    root: _Hash

    @property
    def leaves(self) -> int:
        return len(SHARED) + self.slots


class Commitment(StrictModel):
    """What is published: it fixes every key and shows none. Old commitments stay valid as epochs are added.

    committed: how many leaves of each purpose `root` covers; what a correction for several keys has to count.
    """

    format: Literal["spiritsafe-commitment/1"] = "spiritsafe-commitment/1"
    key_set: KeySetId
    created: str
    root: _Hash
    trees: tuple[Tree, ...]
    committed: dict[Purpose, int]

    @classmethod
    def of(cls, key_set: str, created: str, trees: tuple[Tree, ...]) -> Commitment:
        return cls(key_set=key_set, created=created, root=_root(key_set, trees), trees=trees, committed=_count(trees))

    @model_validator(mode="after")
    def _adds_up(self) -> Commitment:
        if _root(self.key_set, self.trees) != self.root:
            raise ValueError("the root is not the hash of these trees")
        if _count(self.trees) != self.committed:
            raise ValueError("the counts of committed leaves are not those of these trees")
        return self


class Leaf(StrictModel):
    """One opened key with what proves that a root covers it. `key` and `salt` are hex."""

    format: Literal["spiritsafe-leaf/1"] = "spiritsafe-leaf/1"
    key_set: KeySetId
    purpose: Purpose
    scheme: Name
    epoch: Name
    slot: Annotated[int, Field(ge=0, lt=2**32)] | None
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", repr=False)]
    index: int
    path: tuple[_Hash, ...]
    trees: tuple[Tree, ...]

    @property
    def committed(self) -> int:
        """How many leaves of this purpose the root covers, in all its trees."""
        return _count(self.trees)[self.purpose]


class Leaves(StrictModel):
    """Several opened keys in one file."""

    format: Literal["spiritsafe-leaves/1"] = "spiritsafe-leaves/1"
    leaves: Annotated[tuple[Leaf, ...], Field(min_length=1)]


def verify_leaf(leaf: Leaf, root: str) -> bool:
    """True if the published `root` (hex) covers this key for this purpose, epoch, scheme and slot, and no other."""
    places = [(tree.epoch, tree.scheme) for tree in leaf.trees]
    if len(set(places)) != len(places) or (leaf.epoch, leaf.scheme) not in places:
        return False
    tree = leaf.trees[places.index((leaf.epoch, leaf.scheme))]
    if leaf.index != leaf_index(leaf.purpose, leaf.slot, tree.slots):
        return False
    fields = encode_fields(
        leaf.purpose.encode(),
        leaf.scheme.encode(),
        leaf.epoch.encode(),
        encode_slot(leaf.slot),
        bytes.fromhex(leaf.key),
    )
    leaf_hash = hashlib.sha256(b"\x00" + bytes.fromhex(leaf.salt) + fields).digest()
    path = [bytes.fromhex(node) for node in leaf.path]
    top = root_from_path(leaf_hash, leaf.index, tree.leaves, path)
    return top is not None and top.hex() == tree.root and _root(leaf.key_set, leaf.trees) == root.strip().lower()


def load_commitment(path: Path) -> Commitment:
    """Read COMMITMENT.json and check that its root is the hash of its trees.

    Raises:
        BadInput: it cannot be read, or does not add up.
    """
    return parse_config(_mapping(path), Commitment, where=str(path))


def load_leaf(path: Path) -> Leaf:
    """Read LEAF.json; `verify_leaf` says whether it is true.

    Raises:
        BadInput: it cannot be read or is no leaf.
    """
    return parse_config(_mapping(path), Leaf, where=str(path))


def load_leaves(path: Path) -> tuple[Leaf, ...]:
    """Read a file of one opened key or of several.

    Raises:
        BadInput: as `load_leaf`.
    """
    data = _mapping(path, _MOST_LEAVES)
    if "leaves" in data:
        return parse_config(data, Leaves, where=str(path)).leaves
    return (parse_config(data, Leaf, where=str(path)),)


def _mapping(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    data = read_limited(path, most=most)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: not a JSON object; check the path")
    return data


def leaf_index(purpose: Purpose, slot: int | None, slots: int) -> int | None:
    """The index of a leaf in its tree; None where there is no such leaf."""
    if purpose == "account":
        return len(SHARED) + slot if slot is not None and 0 <= slot < slots else None
    return None if slot is not None else SHARED.index(purpose)


def _root(key_set: str, trees: Sequence[Tree]) -> str:
    listed = (
        field.encode() if isinstance(field, str) else field
        for tree in trees
        for field in (tree.epoch, tree.scheme, str(tree.slots), bytes.fromhex(tree.root))
    )
    return hashlib.sha256(b"\x02" + encode_fields(_FORMAT.encode(), key_set.encode(), *listed)).hexdigest()


def _count(trees: Sequence[Tree]) -> dict[Purpose, int]:
    return {"epoch": len(trees), "coin": len(trees), "account": sum(tree.slots for tree in trees)}
