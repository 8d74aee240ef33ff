"""The similarity panel: an exact rank that no number of prompts can push below 1/(K+1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import leads_kit as kit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe import pvalue
from spiritsafe.audit import _types as types
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import SimilarityConfig
from spiritsafe.audit.tests import _panel as panel
from spiritsafe.audit.tests import open_test
from spiritsafe.errors import BadInput
from spiritsafe.records import Prompt, Reply, Sampling, TeacherInfo

SENTENCE = "a list is a mutable sequence of objects, and it can be sorted in place or joined with another one. Use it!"
WORDS = SENTENCE.split(" ")
PROMPTS = 3


def model(rng: np.random.Generator, near: float, teacher: Sequence[str] | None = None) -> list[str]:
    """Replies of a model: its own habits, with a share `near` of the teacher's words at their places."""
    habits = rng.dirichlet(np.full(len(WORDS), 0.3))
    replies = []
    for p in range(PROMPTS):
        own = rng.choice(WORDS, size=int(rng.integers(4, 9)), p=habits)
        theirs = teacher[p].split(" ") if teacher else []
        replies.append(" ".join(theirs[i] if i < len(theirs) and rng.random() < near else w for i, w in enumerate(own)))
    return replies


def save(path: Path, replies: Sequence[str]) -> Path:
    return kit.write_replies(path, [(f"prompt {p}", text) for p, text in enumerate(replies)])


def make(
    folder: Path,
    teacher: Sequence[str],
    controls: Mapping[str, Sequence[str]],
    bases: Mapping[str, Sequence[str]] | None = None,
    base: Sequence[str] | None = None,
) -> types.Test:
    given = {"t": teacher, **controls, **{f"base-{n}": b for n, b in (bases or {}).items()}}
    if base is not None:
        given["base"] = base
    inputs = {f"inputs/{name}": save(folder / name, replies) for name, replies in given.items()}
    plan = SimilarityConfig(
        kind="similarity",
        reference="inputs/t",
        controls={name: f"inputs/{name}" for name in controls},
        base="inputs/base" if base is not None else None,
        control_bases={name: f"inputs/base-{name}" for name in bases or {}},
    )
    return open_test(plan, Evidence(inputs, b""))


def says(test: types.Test, replies: Sequence[str | None]) -> list[types.Record]:
    by_prompt = {f"prompt {p}": text for p, text in enumerate(replies)}
    return kit.texts(test, lambda item: by_prompt[item.asked["messages"][0]["content"]])


def test_the_null_is_never_rejected_too_often(tmp_path: Path) -> None:
    """One trial: a teacher and twenty models of one population, near the teacher to some degree, as models are."""
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(120):
        teacher = model(rng, 0.0)
        models = [model(rng, rng.beta(1, 3), teacher) for _ in range(20)]
        test = make(tmp_path, teacher, {f"c{i}": m for i, m in enumerate(models[1:])})
        seen.append(test.judge(says(test, models[0])).log10_p)
    kit.never_above(seen, alphas=(0.5, 0.25, 0.05))
    assert 10 ** min(seen) == pytest.approx(0.05) and np.mean(np.array(seen) <= -1) > 0.02


@pytest.mark.parametrize(("controls", "alpha", "trials"), [(99, 1e-2, 4_000), (999, 1e-3, 2_000)])
def test_ranks_keep_their_level_as_far_as_they_reach(controls: int, alpha: float, trials: int) -> None:
    """Models differ in how near they are to the teacher, in all measures at once, with heavy tails and ties."""
    rng = np.random.default_rng(controls)
    seen = []
    for _ in range(trials):
        nearness = rng.standard_t(2, size=(controls + 1, 1))
        values = np.round(nearness + rng.normal(size=(controls + 1, 5)), 1)
        scores = np.array(panel.ranks(values))
        seen.append(np.log10(pvalue.rank(int((scores[1:] >= scores[0]).sum()), controls)))
    kit.never_above(seen, alphas=(alpha,))
    assert min(seen) == pytest.approx(np.log10(alpha))


def test_a_student_of_the_teacher_leads_and_never_by_more_than_the_controls_allow(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    teacher = model(rng, 0.0)
    controls = {f"c{i}": model(rng, 0.1, teacher) for i in range(19)}
    test = make(tmp_path, teacher, controls)
    student = test.judge(says(test, model(rng, 1.0, teacher)))
    assert 10**student.log10_p == pytest.approx(1 / 20) and student.hypotheses[0].rank == (0, 19)
    assert student.effect["value"] > student.effect["under_null"] and student.most == "lead"
    assert "1/20" in student.notes[0]
    parrot = test.judge(says(test, teacher))
    assert 10**parrot.log10_p == pytest.approx(1 / 20)
    assert parrot.hypotheses[0].facts["characters"]["suspect"] == 1.0
    innocent = test.judge(says(test, model(rng, 0.1, teacher)))
    assert innocent.log10_p > -1


def test_ties_count_against_a_finding(tmp_path: Path) -> None:
    teacher = ["the same"] * PROMPTS
    test = make(tmp_path, teacher, {"a": teacher, "b": ["other"] * PROMPTS})
    outcome = test.judge(says(test, teacher))
    assert outcome.hypotheses[0].rank == (1, 2)
    assert any("no controls therefore: a" in note for note in outcome.notes)


def test_a_base_that_is_near_the_teacher_is_taken_off(tmp_path: Path) -> None:
    """A suspect whose base resembles the teacher: alone it leads, against its own base it does not."""
    rng = np.random.default_rng(3)
    teacher = model(rng, 0.0)
    bases = {f"c{i}": model(rng, 0.1, teacher) for i in range(9)}
    controls = {
        n: [b if rng.random() < 0.3 else t for b, t in zip(bases[n], model(rng, 0.3, teacher), strict=True)]
        for n in bases
    }
    base = model(rng, 0.9, teacher)
    alone = make(tmp_path, teacher, controls)
    against = make(tmp_path, teacher, controls, bases, base)
    assert 10 ** alone.judge(says(alone, base)).log10_p == pytest.approx(0.1)
    outcome = against.judge(says(against, base))
    assert outcome.log10_p > -0.5 and outcome.effect["value"] == 0.0


def test_failures_are_left_out_for_all_models(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    teacher = model(rng, 0.0)
    controls = {f"c{i}": model(rng, 0.2, teacher) for i in range(3)}
    test = make(tmp_path, teacher, controls)
    said = model(rng, 0.2, teacher)
    outcome = test.judge(says(test, [None, *said[1:]]))
    assert outcome.n_scored == PROMPTS - 1 and any("1 of 3 prompts" in note for note in outcome.notes)
    fewer = make(tmp_path, teacher[:0] + teacher[1:], {n: c[1:] for n, c in controls.items()})
    by_text = {item.asked["messages"][0]["content"]: said[1:][i] for i, item in enumerate(fewer.items())}
    same = fewer.judge(kit.texts(fewer, lambda item: by_text[item.asked["messages"][0]["content"]]))
    assert same.hypotheses[0].facts == outcome.hypotheses[0].facts and same.log10_p == outcome.log10_p
    assert test.judge([]).log10_p == 0.0
    foreign = replace(says(test, said)[0], test="another", item="x")
    assert test.judge([*says(test, said), foreign]).n_scored == PROMPTS


async def test_it_asks_greedily(tmp_path: Path) -> None:
    test = make(tmp_path, ["x"] * PROMPTS, {"c": ["y"] * PROMPTS})

    class Parrot:
        info, access, batch, concurrency = TeacherInfo("parrot"), "text", 4, 2

        async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> tuple[Reply, ...]:
            assert sampling == Sampling(max_tokens=128, temperature=0.0)
            return (Reply(prompt.messages[-1].content, "stop"),)

    got = await test.ask(Parrot(), test.items())  # type: ignore[arg-type]
    assert [g["text"] for g in got] == [f"prompt {p}" for p in range(PROMPTS)]


@pytest.mark.parametrize(
    ("config", "says_what"),
    [
        ({"base": "inputs/t"}, "give all of them or none"),
        ({"control_bases": {"c": "inputs/t"}}, "give all of them or none"),
        ({"base": "inputs/t", "control_bases": {"d": "inputs/t"}}, "give all of them or none"),
        ({"controls": {"c": "inputs/short"}}, "inputs/short: no reply to 1 of the 2 prompts"),
        ({"controls": {"c": "inputs/none"}}, "not among the inputs"),
    ],
)
def test_a_panel_that_cannot_be_is_one_line(tmp_path: Path, config: dict[str, Any], says_what: str) -> None:
    inputs = {"inputs/t": save(tmp_path / "t", ["a", "b"]), "inputs/short": save(tmp_path / "s", ["a"])}
    settings = {"reference": "inputs/t", "controls": {"c": "inputs/t"}, **config}
    with pytest.raises(BadInput, match=says_what) as caught:
        open_test(SimilarityConfig(kind="similarity", **settings), Evidence(inputs, b""))
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_every_measure_lies_between_nothing_and_the_same(a: str, b: str) -> None:
    one, other = panel.Seen(a), panel.Seen(b)
    assert np.array_equal(one.like(other), other.like(one))
    assert ((one.like(other) >= 0) & (one.like(other) <= 1)).all()
    assert (one.like(panel.Seen(a)) == 1).all()
    looked = panel.Looked.at([a, b], [one, other])
    assert looked.panel([0, 1], np.stack([panel.marks(one), panel.marks(other)])) == pytest.approx(1.0)


def test_a_huge_reply_is_looked_at_in_part() -> None:
    assert len(panel.Seen("word " * 1_000_000).words) == 4_000


def test_ranks_count_models_below_and_treat_all_alike() -> None:
    values = np.random.default_rng(0).integers(0, 4, size=(7, 5)).astype(float)
    for i, score in enumerate(panel.ranks(values)):
        assert score == (2 * (values < values[i]).sum() + (values == values[i]).sum() - 5)
    order = np.random.default_rng(1).permutation(7)
    assert [panel.ranks(values)[i] for i in order] == panel.ranks(values[order])
