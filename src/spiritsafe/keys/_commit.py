"""Commit to every key of a key set in one hash, and open some of them. What a stranger checks: `_commitment`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from spiritsafe.errors import BadInput
from spiritsafe.keys._commitment import SHARED, Commitment, Leaf, Purpose, Tree, leaf_index
from spiritsafe.keys._derive import KEY_BYTES, encode_fields
from spiritsafe.keys._file import change_keys, load_keys, next_epoch, now
from spiritsafe.keys._keyset import Epoch, KeySet
from spiritsafe.keys._merkle import root_and_paths
from spiritsafe.progress import Progress, Silent

__all__ = ["SLOTS", "commit_keys", "open_accounts", "open_leaf"]

SLOTS = 2**20
_CHUNK = 2**16


def commit_keys(
    path: Path,
    *,
    slots: int = SLOTS,
    schemes: Sequence[str] | None = None,
    passphrase: str | None = None,
    progress: Progress | None = None,
) -> Commitment:
    """Commit to the epoch key, the coin key and `slots` account slots of every epoch, a few seconds each.

    schemes: those whose keys are in use; default: the one in the key set's marking.

    Raises:
        BadInput: as `load_keys`, no scheme is known, or `slots` is not 1 … 2^32.
    """
    keys = load_keys(path, passphrase)
    watch = progress or Silent()
    names = dict.fromkeys(schemes or [_scheme(keys)])
    trees = tuple(
        _tree(epoch.name, scheme, _leaf_hashes(keys, epoch.name, scheme, slots, watch))
        for epoch in keys.epochs
        for scheme in names
    )
    return Commitment.of(keys.id, now(), trees)


def open_leaf(
    path: Path,
    epoch: str,
    purpose: Purpose,
    slot: int | None = None,
    *,
    scheme: str | None = None,
    commitment: Commitment | None = None,
    slots: int = SLOTS,
    passphrase: str | None = None,
    progress: Progress | None = None,
) -> Leaf:
    """Disclose one key, provably one of those committed to. What is opened is noted in the file before this returns.

    commitment: the one to open against, perhaps older than the newest epoch; default: what `commit_keys` makes now of
        all epochs, `slots` and this scheme.
    Whoever holds an epoch key can forge: the epoch becomes "opened", and if it was active the next one begins.

    Raises:
        BadInput: as `load_keys`; no such epoch, scheme or slot; or the commitment is not of this key set.
    """
    (leaf,) = _open(path, epoch, purpose, (slot,), scheme, commitment, slots, passphrase, progress)
    return leaf


def open_accounts(
    path: Path,
    epoch: str,
    accounts: Sequence[int],
    *,
    scheme: str | None = None,
    commitment: Commitment | None = None,
    slots: int = SLOTS,
    passphrase: str | None = None,
    progress: Progress | None = None,
) -> tuple[Leaf, ...]:
    """`open_leaf` for many accounts' keys at once: the tree is made once, and KEYS.json written once.

    Raises:
        BadInput: as `open_leaf`, or no account is named.
    """
    if not accounts:
        raise BadInput("no account slot to open; name at least one")
    return _open(path, epoch, "account", accounts, scheme, commitment, slots, passphrase, progress)


def _open(
    path: Path,
    epoch: str,
    purpose: Purpose,
    wanted: Sequence[int | None],
    scheme: str | None,
    commitment: Commitment | None,
    slots: int,
    passphrase: str | None,
    progress: Progress | None,
) -> tuple[Leaf, ...]:
    keys = load_keys(path, passphrase)
    name = keys.epoch(epoch).name
    scheme = scheme or _scheme(keys)
    tree = _find(commitment, keys.id, name, scheme) if commitment else None
    slots = tree.slots if tree else slots
    places = [(slot, _place(purpose, slot, slots)) for slot in wanted]
    watch = progress or Silent()
    hashes = _leaf_hashes(keys, name, scheme, slots, watch)
    root, paths = root_and_paths(hashes, [index for _, index in places])
    if tree and root.hex() != tree.root:
        raise BadInput(f"commitment of {keys.id}: does not fit the keys of {name}; give the one made from this file")
    trees = (
        commitment.trees
        if commitment
        else tuple(
            _tree(
                other.name,
                scheme,
                hashes if other.name == name else _leaf_hashes(keys, other.name, scheme, slots, watch),
            )
            for other in keys.epochs
        )
    )
    leaves = tuple(
        Leaf(
            key_set=keys.id,
            purpose=purpose,
            scheme=scheme,
            epoch=name,
            slot=slot,
            salt=keys.derive(f"salt/{purpose}", name, scheme, slot).hex(),
            key=keys.derive(purpose, name, scheme, slot, KEY_BYTES).hex(),
            index=index,
            path=tuple(node.hex() for node in audit_path),
            trees=trees,
        )
        for (slot, index), audit_path in zip(places, paths, strict=True)
    )
    if purpose != "coin":
        change_keys(path, lambda current: _opened(current.epochs, name, wanted), passphrase)
    return leaves


def _place(purpose: Purpose, slot: int | None, slots: int) -> int:
    index = leaf_index(purpose, slot, slots)
    if index is None:
        raise BadInput(f"--slot {slot}: an account's key has a slot below {slots}, a key of an epoch or coin has none")
    return index


def _scheme(keys: KeySet) -> str:
    scheme = keys.marking.get("scheme")
    if not isinstance(scheme, str):
        raise BadInput(f"{keys.id}: its marking names no scheme; say which with --scheme")
    return scheme


def _find(commitment: Commitment, key_set: str, epoch: str, scheme: str) -> Tree:
    for tree in commitment.trees:
        if (commitment.key_set, tree.epoch, tree.scheme) == (key_set, epoch, scheme):
            return tree
    raise BadInput(
        f"commitment of {commitment.key_set}: has no keys of {key_set}, epoch {epoch}, scheme {scheme}; "
        "give a commitment made after that epoch began"
    )


def _tree(epoch: str, scheme: str, hashes: bytes) -> Tree:
    slots = len(hashes) // hashlib.sha256().digest_size - len(SHARED)
    return Tree(epoch=epoch, scheme=scheme, slots=slots, root=root_and_paths(hashes)[0].hex())


def _leaf_hashes(keys: KeySet, epoch: str, scheme: str, slots: int, progress: Progress) -> bytes:
    if not 1 <= slots <= 2**32:
        raise BadInput(f"{slots} slots: commit to between 1 and 2^32 account slots an epoch")
    stage, note = f"{epoch} {scheme}, %", f"{slots} slots"
    hashes = [hashlib.sha256(leaf).digest() for leaf in _shared_leaves(keys, epoch, scheme)]
    progress.update(stage, 0, 100, note)
    for start in range(0, slots, _CHUNK):
        some = range(start, min(start + _CHUNK, slots))
        hashes += [hashlib.sha256(leaf).digest() for leaf in _account_leaves(keys, epoch, scheme, some)]
        progress.update(stage, 100 * some.stop // slots, 100, note)
    return b"".join(hashes)


def _shared_leaves(keys: KeySet, epoch: str, scheme: str) -> Iterator[bytes]:
    for purpose in SHARED:
        key = keys.derive(purpose, epoch, scheme, length=KEY_BYTES)
        fields = encode_fields(purpose.encode(), scheme.encode(), epoch.encode(), b"", key)
        yield b"\x00" + keys.derive(f"salt/{purpose}", epoch, scheme) + fields


def _account_leaves(keys: KeySet, epoch: str, scheme: str, slots: range) -> Iterator[bytes]:
    before = encode_fields(b"account", scheme.encode(), epoch.encode()) + (8).to_bytes(4, "big")
    between = KEY_BYTES.to_bytes(4, "big")
    blocks = keys.blocks("account", epoch, scheme, slots)
    salts = keys.blocks("salt/account", epoch, scheme, slots)
    for slot, block, salt in zip(slots, blocks, salts, strict=True):
        yield b"\x00" + salt + before + slot.to_bytes(8, "big") + between + block[:KEY_BYTES]


def _opened(epochs: tuple[Epoch, ...], name: str, wanted: Sequence[int | None]) -> tuple[Epoch, ...]:
    """wanted: accounts' slots, or (None,) for the epoch's own key."""
    slots = [slot for slot in wanted if slot is not None]
    if not slots and any(epoch.name == name and epoch.state == "active" for epoch in epochs):
        return next_epoch(epochs, None, compromised=True)
    at = now()

    def note(epoch: Epoch) -> Epoch:
        if epoch.name != name:
            return epoch
        if slots:
            return epoch.model_copy(update={"opened_slots": tuple(sorted({*epoch.opened_slots, *slots}))})
        return epoch.model_copy(update={"state": "opened", "opened": epoch.opened or at})

    return tuple(note(epoch) for epoch in epochs)
