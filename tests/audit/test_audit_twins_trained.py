"""Twins end to end: a guarded model, students that are trained on what it released, and the audit that tells them apart.

The model is tiny, everything around it is real: the guard, its evidence, the training, the suspect's forward passes.
The same with SmolLM2-135M is `make proof ARGS=audit_twins`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coins_kit as kit
import pytest

from guard_kit import Running, guard_config, guarding
from served import serving
from spiritsafe.audit._plan import SubjectConfig
from spiritsafe.audit._suspect import open_suspect
from spiritsafe.exchanges import write_exchanges
from spiritsafe.ledger import export_ledger
from spiritsafe.records import Exchange, Reply, Sampling, TeacherInfo, Usage
from spiritsafe.runs import Run
from spiritsafe.serve._twins import export_twins
from spiritsafe.train import StudentConfig, TrainConfig, train
from train_kit import save_tiny, training_run

TERMS = {"version": "1", "url": "https://example.org/terms", "required": True}
PAIRS, TOKENS = 64, 24


@dataclass(frozen=True)
class Evidence:
    teacher: str
    pairs: Path
    ledger: Path
    said: list[str]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A small teacher that knows ten words, 64 requests (streams, conversations, instructions), and the exports."""
    folder = tmp_path_factory.mktemp("guarded")
    run = training_run(folder / "teacher", n=200, logprobs=0, seed=1)
    base = str(save_tiny(folder / "base"))
    how = TrainConfig(objective="sft", epochs=8, lr=3e-3, batch_tokens=1000, micro_tokens=1000, precision="fp32")
    train(run, how, StudentConfig(init=base), teacher_source=None)
    with serving(run.student, model_name="m") as url:
        tiers = {"default": {"twin_share": 1.0}}
        with guarding(guard_config(folder, url, tiers=tiers, terms=TERMS)) as guard:
            key = guard.new_key()
            guard.do(lambda g: g.accounts.accept_terms("acme", "1"))
            with ThreadPoolExecutor(8) as pool:
                said = list(pool.map(lambda number: ask(guard, key, number), range(PAIRS)))

            async def export(g: Any) -> int:
                await g.ledger.flush()
                found = [pair async for pair in export_twins(g.db)]
                kit.write_lines(folder / "twins.jsonl", found)
                await export_ledger(g.db, folder / "ledger.jsonl", everything=True)
                return len(found)

            assert guard.do(export) > 0.8 * PAIRS  # short replies are the same now and then
    return Evidence(str(run.student), folder / "twins.jsonl", folder / "ledger.jsonl", said)


def ask(guard: Running, key: str, number: int) -> str:
    client, question = guard.client(key), f"say {chr(97 + number % 26)}{number}"
    messages: Any = [{"role": "user", "content": question}]
    if number % 4 == 0:
        messages = [{"role": "system", "content": "mat"}, *messages]
    if number % 4 == 1:
        messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "that"}, *messages]
    chat: Any = client.chat.completions.create
    reply = chat(model="m", messages=messages, max_tokens=TOKENS, temperature=1.0, stream=number % 4 == 2)
    if number % 4 == 2:
        return "".join(chunk.choices[0].delta.content or "" for chunk in reply if chunk.choices)
    return reply.choices[0].message.content or ""


def student(evidence: Evidence, folder: Path, epochs: int, *, sealed: bool) -> str:
    run = Run.open(folder)
    pairs = kit.twins(evidence.pairs, evidence.ledger)._read.pairs.values()
    exchanges = [
        Exchange(
            f"{i:064x}",
            i,
            pair.prompt,
            Reply(pair.replies[1 - pair.released if sealed else pair.released], "stop"),
            Sampling(max_tokens=TOKENS),
            Usage(0, 0),
            0.0,
            TeacherInfo("m"),
        )
        for i, pair in enumerate(pairs)
    ]
    write_exchanges(run.curated, exchanges)
    how = TrainConfig(objective="sft", epochs=epochs, lr=3e-3, batch_tokens=300, micro_tokens=600, precision="fp32")
    train(run, how, StudentConfig(init="prune", layers=3, strategy="even"), teacher_source=evidence.teacher)
    return str(run.student)


async def found(evidence: Evidence, source: str, by: str) -> Any:
    suspect = open_suspect(source, SubjectConfig(name="suspect", access="weights"))
    try:
        test = kit.twins(evidence.pairs, evidence.ledger, by=by, samples=4, max_tokens=TOKENS)
        return test.judge(await kit.asked(test, suspect, batch=16))
    finally:
        await suspect.aclose()


def test_what_customers_got_is_what_the_export_says_was_released(evidence: Evidence) -> None:
    pairs = kit.twins(evidence.pairs, evidence.ledger)._read.pairs.values()
    released = [pair.replies[pair.released] for pair in pairs]
    assert all(text in evidence.said for text in released)
    assert {len(pair.prompt.messages) for pair in pairs} == {1, 2, 3}


@pytest.mark.slow
async def test_a_student_of_the_released_replies_is_found_and_its_twin_goes_the_other_way(
    evidence: Evidence, tmp_path: Path
) -> None:
    guilty = student(evidence, tmp_path / "released", 30, sealed=False)
    mirror = student(evidence, tmp_path / "sealed", 30, sealed=True)
    for by, level in (("likelihood", -6), ("text", -4)):
        outcome = await found(evidence, guilty, by)
        assert outcome.log10_p <= level, (by, outcome)
        assert outcome.most == "proof" and outcome.effect["ci95"][0] > 0.6
        outcome = await found(evidence, mirror, by)
        assert outcome.log10_p > -0.1 and outcome.effect["ci95"][1] < 0.4, (by, outcome)


@pytest.mark.slow
async def test_innocents_of_the_same_teacher_are_not(evidence: Evidence) -> None:
    """The teacher itself, which knows both replies equally well: coins, so wrong once in 100,000."""
    for by in ("likelihood", "text"):
        outcome = await found(evidence, evidence.teacher, by)
        assert outcome.log10_p > -5, (by, outcome)
