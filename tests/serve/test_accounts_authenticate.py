"""Who presents a key: the form of keys, and that a refusal tells nothing about which ids exist."""

from __future__ import annotations

import random
import string
import sys
import time
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from spiritsafe.serve import _api_keys, _directory
from spiritsafe.serve._account_rows import Account, ApiKey
from spiritsafe.serve._api_keys import LONGEST, key_mac, new_key, parse_key
from spiritsafe.serve._config import LimitSet
from spiritsafe.serve._directory import Directory

BASE62 = string.digits + string.ascii_letters
PEPPER = bytes(range(32))


def account(name: str) -> Account:
    return Account(
        id=name, name=name, org=None, tier="default", created=0.0, suspended=False, reason=None, appeal=None,
        terms_version=None, terms_accepted=None, twin_consent=False, payment_id=None, limits=LimitSet(), slot=None,
        cluster=None,
    )  # fmt: skip


def directory(count: int) -> tuple[Directory, list[str]]:
    """That many accounts with a key each, and the keys."""
    made, texts = Directory(PEPPER), []
    for number in range(count):
        key = new_key("ss")
        texts.append(key.whole)
        made.put_accounts([account(f"a{number}")])
        mac = key_mac(PEPPER, key.whole.encode())
        made.put_keys([ApiKey(key.id, f"a{number}", None, frozenset({"inference"}), LimitSet(), 0.0, None, None, mac)])
    return made, texts


@given(prefix=st.from_regex(r"\A[a-z0-9]{1,12}\Z"))
def test_a_new_key_is_taken_apart_again(prefix: str) -> None:
    made = new_key(prefix)
    assert parse_key(made.whole) == made
    assert made.whole == f"{prefix}_{made.id}_{made.whole[-43:]}" and len(made.whole) <= LONGEST
    assert made.whole not in repr(made) and made.id in repr(made)
    assert set(made.whole.removeprefix(prefix)) <= set(BASE62 + "_")


@given(text=st.text() | st.text(alphabet=BASE62 + "_", max_size=80))
@example("ss_" + "a" * 12 + "_" + "b" * 43 + "\n")
@example("ss_" + "a" * 12 + "_" + "b" * 42 + "٣")  # a digit, but no ASCII one
@example("ss_" + "a" * 13 + "_" + "b" * 42)
def test_what_is_taken_apart_has_the_form_of_a_key(text: str) -> None:
    taken = parse_key(text)
    if taken is None:
        parts = text.split("_")
        assert not (
            len(parts) == 3 and [len(part) for part in parts[1:]] == [12, 43] and 1 <= len(parts[0]) <= 12
            and set("".join(parts[1:])) <= set(BASE62) and set(parts[0]) <= set(string.digits + string.ascii_lowercase)
        )  # fmt: skip
    else:
        assert taken.whole == text and text.split("_")[1] == taken.id


@given(presented=st.binary(max_size=200))
def test_no_bytes_are_somebody_by_chance(presented: bytes) -> None:
    made, _ = directory(1)
    assert made.authenticate(presented, 0.0) is None


def test_ids_and_secrets_do_not_repeat() -> None:
    keys = [new_key("ss") for _ in range(2000)]
    assert len({key.id for key in keys}) == len({key.whole[-43:] for key in keys}) == 2000
    assert set("".join(key.whole[-43:] for key in keys)) == set(BASE62)


def refusals(texts: list[str], count: int) -> dict[str, list[bytes]]:
    """Keys that are refused, of every kind."""
    source = random.Random(7)
    fresh = [new_key("ss").whole for _ in range(count)]
    wrong = [text[:15] + "_" + new_key("ss").whole[-43:] for text in source.sample(texts, count)]
    junk = ["".join(source.choices(BASE62, k=59)) for _ in range(count)]
    return {
        kind: [text.encode() for text in some] for kind, some in (("unknown", fresh), ("wrong", wrong), ("junk", junk))
    }


def test_a_refusal_runs_the_same_lines_whether_the_id_exists() -> None:
    made, texts = directory(50)
    watched = {_directory.__file__, _api_keys.__file__}

    def lines(presented: bytes) -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []

        def trace(frame: Any, event: str, _: Any) -> Any:
            if frame.f_code.co_filename in watched:
                seen.append((event, frame.f_lineno))
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            assert made.authenticate(presented, 0.0) is None
        finally:
            sys.settrace(before)
        return seen

    runs = {tuple(lines(presented)) for some in refusals(texts, 10).values() for presented in some}
    assert len(runs) == 1 and len(next(iter(runs))) > 5


def test_a_refusal_takes_as_long_whether_the_id_exists() -> None:
    made, texts = directory(5000)
    kinds = refusals(texts, 400)
    samples: dict[str, list[int]] = {kind: [] for kind in kinds}
    order = list(kinds)
    for start in range(400):
        random.shuffle(order)
        for kind in order:
            batch = (kinds[kind] + kinds[kind])[start : start + 20]
            begun = time.perf_counter_ns()
            for presented in batch:
                made.authenticate(presented, 0.0)
            samples[kind].append(time.perf_counter_ns() - begun)
    for kind in ("wrong", "junk"):
        later = superiority(samples[kind], samples["unknown"])
        assert 0.35 < later < 0.65, f"{kind} takes longer than unknown in {later:.0%} of pairs"


def superiority(xs: list[int], ys: list[int]) -> float:
    """P(X > Y) + ½ P(X = Y): ½ if neither tends to be larger (Mann-Whitney's U over its largest value)."""
    return sum((x > y) + (x == y) / 2 for x in xs for y in ys) / (len(xs) * len(ys))


def test_a_valid_key_is_found_and_kept() -> None:
    made, texts = directory(3)
    first = made.authenticate(texts[1].encode(), 0.0)
    assert first is not None and first.account == "a1"
    assert made.authenticate(texts[1].encode(), 1.0) is first
