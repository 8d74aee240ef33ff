"""The second verifier: short, alone, and right about the maths, checked against vectors and against exact values."""

from __future__ import annotations

import ast
import itertools
import json
import math
import random
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import case_kit as kit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe import pvalue
from spiritsafe.audit._case import VERIFIER
from spiritsafe.audit.tests._radioactive_law import stopped_log10_e
from spiritsafe.audit.tests._radioactive_reading import Wrote, predicted
from spiritsafe.audit.tests._resemblance import resemblance
from spiritsafe.watermark import Marking, NativeDetector, scheme_for
from spiritsafe.watermark._prf import key_words, values

VECTORS = Path(__file__).parents[1] / "watermark" / "vectors" / "prf_v1.json"
MARK = {"gamma": 0.25, "depth": 30}


@pytest.fixture(scope="module")
def marks() -> ModuleType:
    return kit.verifier("verify_case")


@pytest.fixture(scope="module")
def coins() -> ModuleType:
    return kit.verifier("verify_coins")


def test_it_is_short_and_imports_the_standard_library_only() -> None:
    ours = {name.removesuffix(".py") for name in VERIFIER}
    for path in VERIFIER.values():
        text = path.read_text()
        assert len(text.splitlines()) <= 300 and max(map(len, text.splitlines())) <= 120
        for node in ast.walk(ast.parse(text)):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name.partition(".")[0] in sys.stdlib_module_names | ours for name in names), names
            assert not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in ("eval", "exec", "__import__")


def test_it_says_what_it_does_not_check(tmp_path: Path) -> None:
    reference = [{"prompt": f"q{i}", "completion": f"reply {i}"} for i in range(4) for _ in range(3)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reference))
    suspect = kit.coins_kit.Scripted(reply=lambda prompt, sample: "reply")
    tests = [{"kind": "equality", "reference": "r.jsonl", "samples": 2, "permutations": 99}]
    made = kit.make(tmp_path, tests, suspect, signed=False)
    done = kit.second(made.path)
    assert done.returncode == 0
    assert "not checked here: transcripts: the questions and numbers of equality (equality)" in done.stdout
    assert "not checked here: signatures, timestamps, and whether the model gave these answers" in done.stdout
    assert made.verify().ok


def test_without_a_case_it_says_how_to_use_it() -> None:
    done = subprocess.run([sys.executable, VERIFIER["verify_case.py"]], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "It does NOT check signatures or timestamps" in done.stderr


def test_taken_out_of_a_case_one_file_does_for_marks_and_says_so_where_coins_need_the_other(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    keyed, tossed = kit.marks(tmp_path / "marks", signed=False, texts=3, tokens=20), kit.coins(tmp_path, signed=False)

    def run(case: Path) -> str:
        script = tmp_path / "verify_case.py"
        done = subprocess.run([sys.executable, script, case], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with zipfile.ZipFile(tossed.path) as case:
        case.extract("verify_case.py", tmp_path)
    assert "log10 p = " in run(keyed.path)
    said = run(tossed.path)
    assert "log10 p" not in said and "not checked here: transcripts: the questions and numbers of twins" in said
    with zipfile.ZipFile(tossed.path) as case:
        case.extract("verify_coins.py", tmp_path)
    said = run(tossed.path)
    assert said.count("log10 p = ") == 2 and "numbers of twins" not in said


def test_the_keyed_function_against_its_vectors(marks: Any) -> None:
    for one in json.loads(VECTORS.read_text())["vectors"]:
        key = bytes.fromhex(one["key"])
        assert marks.siphash(marks.lanes([key]), one["context"]) == int(one["hash"], 16)
        (z,) = marks.values(marks.lanes([key]), one["context"], one["token"])
        assert z == int(one["value"], 16) and ((z >> 12) + 0.5) / 2**52 == float.fromhex(one["uniform"])


@settings(max_examples=30, deadline=None)
@given(key=st.binary(min_size=16, max_size=16), width=st.integers(1, 8), data=st.data())
def test_scores_of_every_scheme(marks: Any, key: bytes, width: int, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=width + 1, max_size=width + 1))
    z = values(key_words(key)[0], np.array([ids[:-1]], np.uint32), np.array(ids[-1:], np.uint32))
    others = [bytes(16), b"\xff" * 16]
    assert marks.values(marks.lanes([others[0], key, others[1]]), ids[:-1], ids[-1])[1] == int(z[0])
    for scheme in ("gumbel-dual", "kgw", "synthid"):
        ours: Any = scheme_for(Marking(scheme=scheme, context_width=width))
        from spiritsafe.watermark._prf import context_hashes

        hashes = context_hashes(key_words(key)[0], np.array([ids[:-1]], np.uint32))
        expected = float(ours.scores(hashes, np.array(ids[-1:], np.uint32))[0])
        assert marks.score(scheme, MARK, int(z[0])) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 800), z=st.floats(-2, 30), scheme=st.sampled_from(["gumbel-dual", "kgw", "synthid"]))
def test_tails_and_e_values_of_sums(marks: Any, n: int, z: float, scheme: str) -> None:
    mean, sd, most = {
        "gumbel-dual": (1.0, 1.0, math.inf), "kgw": (0.25, 0.433, 1.0), "synthid": (15.0, 2.739, 30.0)
    }[scheme]  # fmt: skip
    total = min(max(mean * n + z * sd * math.sqrt(n), 1.0), most * n)
    total = total if scheme == "gumbel-dual" else float(round(total))
    detector = NativeDetector.of_keys(Marking(scheme=scheme), [("e", bytes(16), bytes(16))])
    assert marks.mark_p(scheme, MARK, n, total, True) == pytest.approx(
        detector.log10_tail(n, total), rel=1e-8, abs=1e-9
    )
    stopped = pvalue.from_evalues(stopped_log10_e(detector, n, total))
    assert marks.mark_p(scheme, MARK, n, total, False) == pytest.approx(stopped, rel=1e-9, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(
        st.tuples(*(st.lists(st.integers(0, 3), min_size=low, max_size=high) for low, high in ((1, 4), (1, 12)))),
        min_size=1, max_size=6,
    ),
    k=st.integers(1, 3),
)  # fmt: skip
def test_which_predictions_count(marks: Any, texts: list[tuple[list[int], list[int]]], k: int) -> None:
    draws = random.Random(str(texts))
    said = [[draws.randrange(3) for _ in ids] for _, ids in texts]
    wrote = [
        Wrote(*(np.array(one, np.uint32) for one in (*text, guess))) for text, guess in zip(texts, said, strict=True)
    ]
    detector = NativeDetector.of_keys(Marking(context_width=k, account_share=0), [("e", bytes(16), bytes(16))])
    reading = predicted(detector, wrote).counted(detector, "epoch")
    expected = [
        (tuple(window), token) for window, token in zip(reading.windows.tolist(), reading.tokens.tolist(), strict=True)
    ]
    asked = {str(i): {"ids": [*text[0], *text[1]], "first": len(text[0])} for i, text in enumerate(texts)}
    answers = {str(i): {"argmax": guess} for i, guess in enumerate(said)}
    assert marks.read_marks({"mode": "reading", "supervised": True}, k, asked, answers) == expected


@settings(deadline=None)
@given(n=st.integers(1, 400), data=st.data())
def test_coins(coins: Any, n: int, data: st.DataObject) -> None:
    wins = data.draw(st.integers(0, n))
    pairs = {str(i): (["a", "b"], 0) for i in range(n)}
    better, worse = {"first": [-1.0, 1], "second": [-2.0, 1]}, {"first": [-2.0, 1], "second": [-1.0, 1]}
    answers = {str(i): better if i < wins else worse for i in range(n)}
    exact, judged = coins.p_of("twins", pairs, [], answers, False)
    assert judged == n and exact == pytest.approx(pvalue.binomial(n, 0.5, wins), rel=1e-9, abs=1e-9)
    by_e, _ = coins.p_of("twins", pairs, [], answers, True)
    assert by_e == pytest.approx(pvalue.from_evalues(pvalue.coin_evalue(n, wins)), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(2, 30), min_size=1, max_size=5), data=st.data())
def test_ranks(coins: Any, sizes: list[int], data: st.DataObject) -> None:
    ranks = [data.draw(st.integers(1, size)) for size in sizes]
    known = {str(i): (["x"] * size, 0) for i, size in enumerate(sizes)}
    answers = {
        str(i): {"logprobs": [[-1.0, 1]] + [[-0.5 if j < rank - 1 else -2.0, 1] for j in range(size - 1)]}
        for i, (rank, size) in enumerate(zip(ranks, sizes, strict=True))
    }
    found, _ = coins.p_of("canaries", known, [], answers, False)
    assert found == pytest.approx(pvalue.rank_sum(ranks, sizes), rel=1e-9, abs=1e-9)
    if math.prod(sizes) <= 500:
        seen = sum(pvalue.decibans(*one) for one in zip(ranks, sizes, strict=True))
        every = itertools.product(*(range(1, size + 1) for size in sizes))
        reached = sum(sum(pvalue.decibans(*one) for one in zip(some, sizes, strict=True)) >= seen for some in every)
        assert found == pytest.approx(math.log10(Fraction(reached, math.prod(sizes))), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=3), st.lists(st.text(max_size=30), min_size=2, max_size=3))
def test_resemblance(coins: Any, replies: list[str], texts: list[str]) -> None:
    assert coins.scores({"replies": replies}, texts) == resemblance(replies, texts)


@pytest.mark.parametrize(
    ("mode", "supervised", "marking"),
    [
        ("reading", True, {"scheme": "kgw", "context_width": 1}),
        ("reading", True, {"scheme": "synthid", "depth": 10, "account_share": 0.25}),
        ("completions", True, {}),
        ("completions", False, {"scheme": "gumbel-dual", "context_width": 3}),
    ],
)
def test_marks_of_every_kind(mode: str, supervised: bool, marking: dict[str, Any], tmp_path: Path) -> None:
    made = kit.marks(
        tmp_path, mode=mode, marking=marking, test={"supervised": supervised}, signed=False, texts=6, tokens=60
    )
    done = kit.second(made.path)
    assert done.returncode == 0, done.stdout
    assert f"log10 p = {made.judged.outcomes[0].log10_p:.6f}" in done.stdout
    assert made.verify().ok


def test_by_text_and_stopped_early(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    made = kit.coins(tmp_path / "a", by="text", signed=False)
    assert kit.second(made.path).returncode == 0 and made.verify().ok
    (tmp_path / "b").mkdir()
    stop = {"rule": "e-value", "batch": 4}
    early = kit.coins(tmp_path / "b", pairs=60, canaries=1, signed=False, stop=stop, seed=30)
    assert early.judged.outcomes[0].n_scored < 60
    assert kit.second(early.path).returncode == 0 and early.verify().ok, early.verify().reasons
