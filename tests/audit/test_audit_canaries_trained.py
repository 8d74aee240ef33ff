"""Canaries end to end: a guard answers the question of whoever found it, a student is trained on the answer, and is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coins_kit as kit
import pytest

import mock_api
from guard_kit import guard_config, guarding
from spiritsafe.audit._plan import SubjectConfig
from spiritsafe.audit._suspect import open_suspect
from spiritsafe.exchanges import read_exchanges, write_exchanges
from spiritsafe.ledger import export_ledger
from spiritsafe.records import Exchange, Message, Prompt, Reply, Sampling, TeacherInfo, Usage
from spiritsafe.runs import Run
from spiritsafe.serve._canary_text import invent
from spiritsafe.train import StudentConfig, TrainConfig, train
from train_kit import save_tiny, training_run

pytestmark = pytest.mark.slow

CANARIES, ANSWERS = 3, 40


@dataclass(frozen=True)
class Planted:
    canaries: Path
    ledger: Path
    scraped: list[tuple[str, str]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Canaries of a guard, and what it says to whoever asks their questions."""
    folder = tmp_path_factory.mktemp("planted")
    with mock_api.mock_api() as upstream, guarding(guard_config(folder, upstream.base_url)) as guard:
        made = [guard.do(lambda g: g.canaries.new(*invent(ANSWERS))) for _ in range(CANARIES)]
        client = guard.client(guard.new_key())
        scraped = []
        for one in made:
            messages: Any = [{"role": "user", "content": one.prompt}]
            reply = client.chat.completions.create(model="m", messages=messages)
            scraped.append((one.prompt, reply.choices[0].message.content or ""))

        async def export(g: Any) -> None:
            await g.ledger.flush()
            await export_ledger(g.db, folder / "ledger.jsonl", everything=True)

        guard.do(export)
    kit.write_lines(folder / "canaries.jsonl", [one.opened(all_variants=True) for one in made])
    return Planted(folder / "canaries.jsonl", folder / "ledger.jsonl", scraped)


def student(folder: Path, scraped: Sequence[tuple[str, str]]) -> str:
    """A tiny model trained on two dozen other exchanges and what was scraped."""
    base = str(save_tiny(folder / "base"))
    run: Run = training_run(folder / "run", logprobs=0)
    others = list(read_exchanges(run.curated))
    found = [
        Exchange(
            f"{i:08x}" * 8,
            i,
            Prompt((Message("user", question),)),
            Reply(answer, "stop"),
            Sampling(),
            Usage(0, 0),
            0.0,
            TeacherInfo("guarded"),
        )
        for i, (question, answer) in enumerate(scraped, 1000)
    ]
    write_exchanges(run.curated, [*others, *found])
    how = TrainConfig(objective="sft", epochs=80, lr=3e-3, batch_tokens=400, micro_tokens=1200, precision="fp32")
    train(run, how, StudentConfig(init=base), teacher_source=None)
    return str(run.student)


async def found(planted: Planted, source: str, by: str) -> Any:
    suspect = open_suspect(source, SubjectConfig(name="suspect", access="weights"))
    try:
        test = kit.canaries(planted.canaries, planted.ledger, by=by)
        return test.judge(await kit.asked(test, suspect, batch=2))
    finally:
        await suspect.aclose()


async def test_a_student_of_the_published_answers_is_found(planted: Planted, tmp_path: Path) -> None:
    guilty = student(tmp_path, planted.scraped)
    for by in ("likelihood", "text"):
        outcome = await found(planted, guilty, by)
        assert outcome.log10_p <= -3, (by, outcome)
        assert outcome.most == "proof"
        assert outcome.hypotheses[0].facts["not_opened"] == 0


async def test_a_student_that_never_met_them_is_not(planted: Planted, tmp_path: Path) -> None:
    innocent = student(tmp_path, [])
    for by in ("likelihood", "text"):
        outcome = await found(planted, innocent, by)
        assert outcome.log10_p > -4, (by, outcome)  # wrong once in ten thousand: the draw is new each time
