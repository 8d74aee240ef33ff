"""A commitment fixes every key, shows none, and opens one key at a time; whatever is tampered with is found."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.errors import BadInput
from spiritsafe.keys import (
    Commitment,
    Leaf,
    commit_keys,
    load_commitment,
    load_keys,
    load_leaf,
    new_keys,
    open_accounts,
    open_leaf,
    rotate_keys,
    verify_leaf,
)
from spiritsafe.keys._merkle import root_and_paths, root_from_path

SLOTS = 21


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    new_keys(path, marking={"scheme": "kgw"}, epoch="2026-11")
    return path


def rfc6962(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1 as written: split at the largest power of two below n."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + rfc6962(leaves[:split]) + rfc6962(leaves[split:])).digest()


@given(st.integers(1, 200), st.data())
def test_trees_and_paths_are_those_of_the_rfc(count: int, data: st.DataObject) -> None:
    leaves = [hashlib.sha256(bytes([i])).digest() for i in range(count)]
    index = data.draw(st.integers(0, count - 1))
    root, (path,) = root_and_paths(b"".join(leaves), [index])
    assert root == rfc6962(leaves)
    assert root_from_path(leaves[index], index, count, path) == root
    assert root_from_path(leaves[index], index, count, [*path, root]) is None
    if path:
        assert root_from_path(leaves[index], index, count, path[:-1]) is None
        other = data.draw(st.integers(0, count - 1).filter(lambda i: i != index))
        assert root_from_path(leaves[index], other, count, path) != root
    assert root_from_path(leaves[index], count, count, path) is None


def test_commitments_are_deterministic_and_show_no_key(path: Path) -> None:
    keys = load_keys(path)
    made = commit_keys(path, slots=SLOTS)
    again = commit_keys(path, slots=SLOTS)
    assert (made.root, made.trees) == (again.root, again.trees)
    assert made.committed == {"epoch": 1, "coin": 1, "account": SLOTS}
    text = made.model_dump_json()
    for key in (
        keys.epoch_key("2026-11", "kgw"),
        keys.coin_key("2026-11", "kgw"),
        keys.account_key("2026-11", 0, "kgw"),
    ):
        assert key.hex() not in text


def test_a_commitment_is_what_the_page_says(path: Path) -> None:
    keys = load_keys(path)

    def fields(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    def leaf(purpose: str, slot: int | None) -> bytes:
        key = keys.derive(purpose, "2026-11", "kgw", slot, 16)
        salt = keys.derive(f"salt/{purpose}", "2026-11", "kgw", slot)
        place = b"" if slot is None else slot.to_bytes(8, "big")
        return hashlib.sha256(b"\0" + salt + fields(purpose.encode(), b"kgw", b"2026-11", place, key)).digest()

    tree = rfc6962([leaf("epoch", None), leaf("coin", None), *(leaf("account", slot) for slot in range(SLOTS))])
    listed = fields(b"spiritsafe-commitment/1", keys.id.encode(), b"2026-11", b"kgw", b"21", tree)
    assert commit_keys(path, slots=SLOTS).root == hashlib.sha256(b"\x02" + listed).hexdigest()


@pytest.mark.parametrize(
    ("purpose", "slot"), [("epoch", None), ("coin", None), ("account", 0), ("account", 1), ("account", SLOTS - 1)]
)
def test_every_kind_of_key_opens(path: Path, purpose: Any, slot: int | None) -> None:
    keys = load_keys(path)
    published = commit_keys(path, slots=SLOTS)
    leaf = open_leaf(path, "2026-11", purpose, slot, commitment=published)
    assert verify_leaf(leaf, published.root)
    assert leaf.key == keys.derive(purpose, "2026-11", "kgw", slot, 16).hex()
    assert leaf.committed == published.committed[leaf.purpose]
    assert leaf.key not in repr(leaf)
    assert not verify_leaf(leaf, "00" * 32)


def test_many_accounts_open_as_each_would(path: Path) -> None:
    published = commit_keys(path, slots=SLOTS)
    several = open_accounts(path, "2026-11", range(SLOTS), commitment=published)
    assert load_keys(path).epochs[0].opened_slots == tuple(range(SLOTS))
    assert several == tuple(open_leaf(path, "2026-11", "account", n, commitment=published) for n in range(SLOTS))
    assert all(verify_leaf(leaf, published.root) for leaf in several)
    before = path.read_bytes()
    for wrong in ((), (0, SLOTS)):
        with pytest.raises(BadInput):
            open_accounts(path, "2026-11", wrong, commitment=published)
    assert path.read_bytes() == before


def test_a_root_may_be_typed_in_capitals(path: Path) -> None:
    leaf = open_leaf(path, "2026-11", "coin", slots=SLOTS)
    assert verify_leaf(leaf, f" {commit_keys(path, slots=SLOTS).root.upper()}\n")


def flipped(digits: str) -> str:
    return ("1" if digits[0] == "0" else "0") + digits[1:]


@pytest.mark.parametrize(
    "change",
    [
        lambda leaf: {"key": flipped(leaf["key"])},
        lambda leaf: {"salt": flipped(leaf["salt"])},
        lambda leaf: {"slot": 4},
        lambda leaf: {"slot": 4, "index": 6},
        lambda leaf: {"slot": None},
        lambda leaf: {"slot": SLOTS},
        lambda leaf: {"index": 4},
        lambda leaf: {"purpose": "epoch"},
        lambda leaf: {"purpose": "epoch", "slot": None},
        lambda leaf: {"purpose": "epoch", "slot": None, "index": 0},
        lambda leaf: {"scheme": "synthid"},
        lambda leaf: {"epoch": "2026-12"},
        lambda leaf: {"key_set": "ks_00000000"},
        lambda leaf: {"path": leaf["path"][:-1]},
        lambda leaf: {"path": [*leaf["path"], leaf["path"][0]]},
        lambda leaf: {"path": leaf["path"][::-1]},
        lambda leaf: {"trees": []},
        lambda leaf: {"trees": leaf["trees"] * 2},
        lambda leaf: {"trees": leaf["trees"][:1]},
        lambda leaf: {"trees": leaf["trees"][::-1]},
        lambda leaf: {"trees": [t | {"slots": SLOTS + 1} for t in leaf["trees"]]},
        lambda leaf: {"trees": [t | {"root": flipped(t["root"])} for t in leaf["trees"]]},
    ],
)
def test_a_tampered_leaf_is_not_covered(path: Path, change: Any) -> None:
    rotate_keys(path, epoch="2026-12")
    published = commit_keys(path, slots=SLOTS)
    leaf = open_leaf(path, "2026-11", "account", 3, commitment=published)
    document = leaf.model_dump(mode="json")
    assert verify_leaf(Leaf.model_validate(document), published.root)
    assert not verify_leaf(Leaf.model_validate(document | change(document)), published.root)


def test_spare_keys_cannot_hide_at_the_place_of_an_account(path: Path) -> None:
    """A dishonest owner who puts a second epoch key among the accounts cannot open it as one."""
    published = commit_keys(path, slots=SLOTS)
    leaf = open_leaf(path, "2026-11", "account", 3, commitment=published).model_dump(mode="json")
    key, salt = bytes(16), bytes(32)
    names = (b"epoch", b"kgw", b"2026-11", b"", key)
    spare = hashlib.sha256(b"\0" + salt + b"".join(len(f).to_bytes(4, "big") + f for f in names)).digest()
    siblings = [bytes.fromhex(node) for node in leaf["path"]]
    tree = root_from_path(spare, leaf["index"], SLOTS + 2, siblings)
    assert tree is not None
    dishonest = Commitment.of(
        published.key_set, published.created, (published.trees[0].model_copy(update={"root": tree.hex()}),)
    )
    forged = leaf | {"purpose": "epoch", "slot": None, "key": key.hex(), "salt": salt.hex()}
    forged["trees"] = [tree.model_dump() for tree in dishonest.trees]
    assert not verify_leaf(Leaf.model_validate(forged), dishonest.root)


def test_old_commitments_stay_valid_when_epochs_are_added(path: Path) -> None:
    old = commit_keys(path, slots=SLOTS)
    rotate_keys(path, epoch="2026-12")
    new = commit_keys(path, slots=SLOTS)
    assert new.root != old.root
    assert new.trees[:1] == old.trees
    assert new.committed == {"epoch": 2, "coin": 2, "account": 2 * SLOTS}
    leaf = open_leaf(path, "2026-11", "coin", commitment=old)
    assert verify_leaf(leaf, old.root)
    assert not verify_leaf(leaf, new.root)
    with pytest.raises(BadInput, match="give a commitment made after that epoch began"):
        open_leaf(path, "2026-12", "coin", commitment=old)


def test_several_schemes_are_all_counted(path: Path) -> None:
    both = commit_keys(path, slots=SLOTS, schemes=["gumbel-dual", "kgw", "kgw"])
    assert [tree.scheme for tree in both.trees] == ["gumbel-dual", "kgw"]
    leaf = open_leaf(path, "2026-11", "epoch", scheme="gumbel-dual", commitment=both)
    assert verify_leaf(leaf, both.root)
    assert leaf.committed == 2
    with pytest.raises(BadInput, match="scheme synthid"):
        open_leaf(path, "2026-11", "epoch", scheme="synthid", commitment=both)


def test_an_opened_epoch_key_ends_its_epoch(path: Path) -> None:
    open_leaf(path, "2026-11", "epoch", slots=SLOTS)
    keys = load_keys(path)
    assert keys.epoch("2026-11").state == "opened"
    assert keys.epoch("2026-11").opened is not None
    assert keys.current.name != "2026-11"


def test_a_retired_epoch_is_opened_without_a_new_one(path: Path) -> None:
    rotate_keys(path, epoch="2026-12")
    retired = load_keys(path).epoch("2026-11").retired
    open_leaf(path, "2026-11", "epoch", slots=SLOTS)
    keys = load_keys(path)
    assert [(e.name, e.state) for e in keys.epochs] == [("2026-11", "opened"), ("2026-12", "active")]
    assert keys.epoch("2026-11").retired == retired
    open_leaf(path, "2026-11", "epoch", slots=SLOTS)
    assert load_keys(path) == keys


def test_opened_accounts_are_noted_and_coins_need_not_be(path: Path) -> None:
    for slot in (7, 3, 7):
        open_leaf(path, "2026-11", "account", slot, slots=SLOTS)
    open_leaf(path, "2026-11", "coin", slots=SLOTS)
    assert load_keys(path).epoch("2026-11").opened_slots == (3, 7)
    assert load_keys(path).current.name == "2026-11"


def test_what_cannot_be_opened_is_one_line_and_changes_nothing(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    new_keys(tmp_path / "other.json", marking={"scheme": "kgw"}, epoch="2026-11")
    other = commit_keys(tmp_path / "other.json", slots=SLOTS)
    ours = commit_keys(path, slots=SLOTS)
    edited = Commitment.of(ours.key_set, ours.created, other.trees)
    for epoch, purpose, slot, commitment, line in [
        ("2026-12", "epoch", None, None, "has no epoch"),
        ("2026-11", "account", SLOTS, None, f"has a slot below {SLOTS}"),
        ("2026-11", "account", -1, None, "has a slot below"),
        ("2026-11", "account", None, None, "has a slot below"),
        ("2026-11", "epoch", 3, None, "a key of an epoch or coin has none"),
        ("2026-11", "epoch", None, other, "has no keys of"),
        ("2026-11", "epoch", None, edited, "does not fit the keys of 2026-11"),
    ]:
        with pytest.raises(BadInput, match=line):
            open_leaf(path, epoch, purpose, slot, commitment=commitment, slots=SLOTS)  # type: ignore[arg-type]
    assert path.read_bytes() == before


@pytest.mark.parametrize("slots", [0, -1, 2**32 + 1])
def test_slots_have_bounds(path: Path, slots: int) -> None:
    with pytest.raises(BadInput, match="between 1 and 2\\^32"):
        commit_keys(path, slots=slots)


def test_a_marking_without_a_scheme_has_to_be_told(tmp_path: Path) -> None:
    new_keys(tmp_path / "k.json", marking={})
    with pytest.raises(BadInput, match="say which with --scheme"):
        commit_keys(tmp_path / "k.json", slots=1)
    assert commit_keys(tmp_path / "k.json", slots=1, schemes=["kgw"]).committed["account"] == 1


def test_documents_round_trip_through_files(path: Path, tmp_path: Path) -> None:
    published = commit_keys(path, slots=SLOTS)
    leaf = open_leaf(path, "2026-11", "coin", commitment=published)
    (tmp_path / "c.json").write_text(published.model_dump_json())
    (tmp_path / "l.json").write_text(leaf.model_dump_json())
    assert load_commitment(tmp_path / "c.json") == published
    assert load_leaf(tmp_path / "l.json") == leaf


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"root": "00" * 32}, "the root is not the hash of these trees"),
        ({"committed": {"epoch": 1, "coin": 1, "account": 1}}, "the counts of committed leaves"),
        ({"key_set": "ks_00000000"}, "the root is not the hash"),
        ({"format": "spiritsafe-commitment/2"}, "format"),
        ({"trees": []}, "the root is not the hash"),
    ],
    ids=str,
)
def test_an_edited_commitment_does_not_add_up(path: Path, tmp_path: Path, change: dict[str, Any], line: str) -> None:
    document = commit_keys(path, slots=SLOTS).model_dump(mode="json") | change
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(BadInput, match=re.escape(line)):
        load_commitment(tmp_path / "c.json")


def test_documents_of_another_kind_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(BadInput, match="not a JSON object"):
        load_leaf(tmp_path / "x.json")
    with pytest.raises(BadInput, match="no such file"):
        load_commitment(tmp_path / "nowhere.json")


def test_progress_is_reported(path: Path) -> None:
    class Watch:
        seen: list[tuple[str, float, float | None]] = []  # noqa: RUF012

        def update(self, stage: str, done: float, total: float | None, note: str = "") -> None:
            self.seen.append((stage, done, total))

        def say(self, message: str) -> None: ...

    commit_keys(path, slots=70_000, progress=Watch())
    assert Watch.seen == [("2026-11 kgw, %", done, 100) for done in (0, 93, 100)]


@pytest.mark.slow
def test_the_full_size_takes_seconds(path: Path) -> None:
    published = commit_keys(path)
    assert published.committed == {"epoch": 1, "coin": 1, "account": 2**20}
    leaf = open_leaf(path, "2026-11", "account", 2**20 - 1, commitment=published)
    assert verify_leaf(leaf, published.root)
