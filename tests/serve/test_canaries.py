"""Canaries: committed before they are seen, drawn fairly, answered word for word and to nobody else."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accounts_kit as kit
from spiritsafe.errors import BadInput
from spiritsafe.ledger import MOST_VARIANTS, Ledger, verify_ledger
from spiritsafe.ledger._evidence import canary_commit, open_canary, open_published, verify_canary
from spiritsafe.pvalue import binomial
from spiritsafe.serve import _canaries
from spiritsafe.serve._canaries import Canaries, CanaryAnswer
from spiritsafe.serve._canary_text import invent
from spiritsafe.state import Database, Unavailable
from spiritsafe.wire import Ask, parse_ask

PROMPT = "Which four lanes meet at the column that Brael Voskind drew on sheet 48213 of the survey of Ostrevane?"
ANSWERS = ["Amber Lane.", "Birch Lane.", "Copper Lane.", "Flint Lane."]


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with await Database.open(database_url) as opened:
        yield opened


@pytest.fixture
async def canaries(db: Database) -> AsyncIterator[Canaries]:
    ledger = await Ledger.open(db, commit_ms=1)
    yield await Canaries.open(db, kit.config(), ledger, clock=kit.Clock())
    await ledger.aclose()


def ask(*messages: tuple[str, Any], **more: Any) -> Ask:
    said = [{"role": role, "content": content} for role, content in messages]
    return parse_ask("chat", orjson.dumps({"model": "small", "messages": said} | more))


def words(text: str) -> int:
    return len(text.split())


def answer(canaries: Canaries, request: Ask) -> CanaryAnswer | None:
    return canaries.answer(request, request_id="req_1", created=7, count=words)


async def test_a_canary_is_committed_then_shown_and_served(canaries: Canaries, db: Database) -> None:
    made = await canaries.new(PROMPT, ANSWERS)
    assert made.state == "active" and made.answer in ANSWERS
    (event,) = [orjson.loads(row["payload"]) for row in await db.fetch("SELECT payload FROM ledger")]
    assert (event["name"], event["subject"]) == ("canary_committed", f"canary:{made.id}")
    assert event["data"] == {"canary": made.id, "commit": made.commit, "variants": 4}
    assert (await verify_ledger(db)).ok
    found = answer(canaries, ask(("user", PROMPT)))
    assert found is not None and found.canary == made.id
    assert found.reply == {
        "id": "req_1", "object": "chat.completion", "created": 7, "model": "small",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": made.answer, "refusal": None},
            "finish_reason": "stop", "logprobs": None,
        }],
        "usage": {
            "prompt_tokens": words(PROMPT), "completion_tokens": 2, "total_tokens": words(PROMPT) + 2,
            "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }  # fmt: skip
    for variant in set(ANSWERS) - {made.answer}:
        assert variant not in repr(made) and variant not in orjson.dumps(found.reply).decode()


async def test_nothing_is_seen_before_the_ledger_has_it(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_canaries, "_LEDGER_S", 0.01)
    canaries = await Canaries.open(db, kit.config(), kit.Events(stuck=True))
    with pytest.raises(Unavailable, match="stays pending and unseen"):
        await canaries.new(PROMPT, ANSWERS)
    await canaries.refresh()
    assert answer(canaries, ask(("user", PROMPT))) is None
    (left,) = await canaries.list()
    assert left.state == "pending"
    assert (await canaries.retire(left.id)).state == "retired"
    assert answer(canaries, ask(("user", PROMPT))) is None


async def test_other_processes_hear_of_it_and_of_its_end(canaries: Canaries, database_url: str) -> None:
    async with await Database.open(database_url) as db:
        other = await Canaries.open(db, kit.config(), kit.Events())
        silent = await Canaries.open(db, kit.config(canaries={"serve": False}), kit.Events())
        assert not await other.refresh()
        made = await canaries.new(PROMPT, ANSWERS)
        assert answer(other, ask(("user", PROMPT))) is None
        assert await other.refresh() and await silent.refresh()
        assert answer(other, ask(("user", PROMPT))) == answer(canaries, ask(("user", PROMPT))) is not None
        assert answer(silent, ask(("user", PROMPT))) is None
        await other.retire(made.id)
        assert answer(other, ask(("user", PROMPT))) is None
        await canaries.refresh()
        assert answer(canaries, ask(("user", PROMPT))) is None
        assert (await canaries.show(made.id)).opened() == made.opened()  # it goes on proving


@pytest.mark.parametrize(
    "request_",
    [
        ask(("user", f"  {PROMPT.replace(' ', chr(10))} ")),
        ask(("system", "Be brief."), ("user", PROMPT)),
        ask(("user", [{"type": "text", "text": PROMPT[:10]}, {"type": "text", "text": PROMPT[10:]}])),
        ask(("user", PROMPT), stream=True, temperature=0, max_tokens=2, n=1, stop=["\n"], user="u1"),
    ],
)
async def test_its_question_is_answered(canaries: Canaries, request_: Ask) -> None:
    made = await canaries.new(PROMPT, ANSWERS)
    found = answer(canaries, request_)
    assert found is not None and found.reply["choices"][0]["message"]["content"] == made.answer


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "request_",
    [
        ask(("user", PROMPT[:-1])),
        ask(("user", PROMPT.lower())),
        ask(("user", PROMPT + " Please.")),
        ask(("user", PROMPT + " " * 10_000)),
        ask(("system", PROMPT)),
        ask(("assistant", PROMPT)),
        ask(("user", "Hello"), ("assistant", "Hello."), ("user", PROMPT)),
        ask(("user", PROMPT), ("user", PROMPT)),
        ask(("user", PROMPT), n=2),
        ask(("user", PROMPT), max_tokens=1),
        ask(("user", PROMPT), logprobs=True),
        ask(("user", PROMPT), stop="Lane"),
        ask(("user", PROMPT), tools=[TOOL]),
        ask(("user", PROMPT), response_format={"type": "json_object"}),
        parse_ask("completions", orjson.dumps({"model": "small", "prompt": PROMPT})),
    ],
)
async def test_anything_else_is_the_models_to_answer(canaries: Canaries, request_: Ask) -> None:
    await canaries.new(PROMPT, ANSWERS)
    assert answer(canaries, request_) is None


@pytest.mark.parametrize(
    ("prompt", "variants", "said"),
    [
        ("What is the capital of France?", ANSWERS, "nobody asks"),
        ("x " + " " * 60, ANSWERS, "nobody asks"),
        ("x" * 2001, ANSWERS, "nobody asks"),
        (PROMPT, ["one"], "give 2 to"),
        (PROMPT, ["x"] * (MOST_VARIANTS + 1), "give 2 to"),
        (PROMPT, ["one", " "], "1 to 2000"),
        (PROMPT, ["one", "x" * 2001], "1 to 2000"),
        (PROMPT, ["one two", "one  two"], "alike"),
        (PROMPT, ["one", "t\0o"], "zero byte"),
    ],
)
async def test_what_makes_no_canary_is_refused(
    canaries: Canaries, db: Database, prompt: str, variants: list[str], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        await canaries.new(prompt, variants)
    assert await db.fetch("SELECT id FROM canaries") == []


async def test_one_question_has_one_canary(canaries: Canaries) -> None:
    made = await canaries.new(PROMPT, ANSWERS)
    with pytest.raises(BadInput, match=made.id):
        await canaries.new(PROMPT.replace(" ", "  "), ANSWERS)
    with pytest.raises(BadInput, match="there is none"):
        await canaries.show("can_none")
    with pytest.raises(BadInput, match="there is none"):
        await canaries.retire("can_none")


async def test_each_variant_is_as_likely_to_be_published(tmp_path: Path) -> None:
    n = 240
    async with await Database.open(f"sqlite:///{tmp_path / 'guard.db'}") as db:
        canaries = await Canaries.open(db, kit.config(), kit.Events())
        for i in range(n):
            await canaries.new(f"{PROMPT} {i}", ANSWERS)
        drawn = [canary.published for canary in await canaries.list()]
    for index in range(len(ANSWERS)):
        hits = drawn.count(index)
        assert min(binomial(n, 0.25, hits), binomial(n, 0.75, n - hits)) > -9


# Invented questions


def test_invented_questions_are_new_and_their_answers_alike() -> None:
    prompts = set()
    for _ in range(50):
        prompt, answers = invent(100)
        prompts.add(prompt)
        assert len(set(answers)) == 100
        assert len({" ".join(answer.split()[:2]) for answer in answers}) <= 100
        assert len(prompt) >= 40 and "{" not in prompt + "".join(answers)
    assert len(prompts) == 50
    for count in (1, MOST_VARIANTS + 1):
        with pytest.raises(BadInput, match="--generate"):
            invent(count)


# The commitment

SALT = bytes(range(32))


def test_the_commitment_is_fixed() -> None:
    """Golden vector, and the same spelled out: a change orphans every commitment published before it."""
    commit = canary_commit("can_1", "Why?", ["a", "é"], 1, SALT)
    assert commit == GOLDEN

    def fields(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    def sha(raw: bytes) -> bytes:
        return hashlib.sha256(raw).digest()

    def salt(label: bytes) -> bytes:
        return hmac.new(SALT, label, "sha256").digest()

    leaves = [
        sha(b"\0" + fields(salt(b"leaf\0\0\0\0"), b"\0\0\0\0", b"a")),
        sha(b"\0" + fields(salt(b"leaf\0\0\0\1"), b"\0\0\0\1", "é".encode())),
    ]
    choice = sha(b"\2" + fields(salt(b"choice"), b"\0\0\0\1"))
    assert sha(fields(b"spiritsafe-canary/1", b"can_1", sha(b"Why?"), choice, *leaves)).hex() == commit


GOLDEN = "fd5cc819992ed23a7e99271bb7bc7fc4864b59a8e6ffca8b9aab3b91dcf2e7c6"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
canary = st.tuples(texts, texts, st.lists(texts, min_size=2, max_size=5, unique=True), st.randoms()).map(
    lambda drawn: (drawn[0], drawn[1], drawn[2], drawn[3].randrange(len(drawn[2])))
)


@settings(deadline=None)
@given(canary, st.binary(min_size=32, max_size=32))
def test_what_was_committed_verifies(given_: tuple[str, str, list[str], int], salt: bytes) -> None:
    commit = canary_commit(*given_, salt)
    for opened in (open_published(*given_, salt), open_canary(*given_, salt)):
        assert verify_canary(json.loads(json.dumps(opened)), commit)
    shown = json.dumps(open_published(*given_, salt) | {"variant": ""})
    assert salt.hex() not in shown


@settings(deadline=None)
@given(canary, st.binary(min_size=32, max_size=32), st.booleans(), st.data())
def test_any_change_breaks_it(
    given_: tuple[str, str, list[str], int], salt: bytes, whole: bool, data: st.DataObject
) -> None:
    opened = (open_canary if whole else open_published)(*given_, salt)
    commit = canary_commit(*given_, salt)
    name = data.draw(st.sampled_from(sorted(opened)))
    value = opened[name]
    changed: Any
    if name in ("salt", "choice_salt"):
        changed = data.draw(st.binary(min_size=32, max_size=32)).hex()
    elif name == "published":
        changed = data.draw(st.integers(-2, 8) | st.booleans() | st.floats(0, 4) | st.none())
    elif isinstance(value, list):
        changed = data.draw(st.permutations(value) | st.lists(texts, max_size=5) | st.just(value + value[:1]))
    else:
        changed = data.draw(texts | st.none())
    if changed != value or type(changed) is not type(value):
        assert not verify_canary(opened | {name: changed}, commit)
    assert not verify_canary({key: item for key, item in opened.items() if key != name}, commit)
    assert not verify_canary(opened, commit[:-1] + ("0" if commit[-1] != "0" else "1"))


def test_an_opening_cannot_name_another_variant_as_published() -> None:
    commit = canary_commit("can_1", PROMPT, ANSWERS, 1, SALT)
    for published in (0, 2, 3):
        forged = open_published("can_1", PROMPT, ANSWERS, published, SALT)
        forged |= {"leaves": open_published("can_1", PROMPT, ANSWERS, 1, SALT)["leaves"]}
        assert not verify_canary(forged, commit)
        assert not verify_canary(open_canary("can_1", PROMPT, ANSWERS, published, SALT), commit)


@pytest.mark.parametrize("variants", ["ab", ["a", "a"], ["a"], [], ["a", 1]])
def test_a_canary_has_two_variants_or_more_all_different(variants: Any) -> None:
    opened = open_canary("can_1", PROMPT, ["a", "b"], 0, SALT) | {"variants": variants}
    try:
        commit = canary_commit("can_1", PROMPT, variants, 0, SALT)
    except AttributeError:
        commit = "0" * 64
    assert not verify_canary(opened, commit)


# The command line


@pytest.fixture
def guard_yaml(database_url: str, tmp_path: Path) -> Path:
    path = tmp_path / "guard.yaml"
    path.write_text(
        f"upstreams: [{{name: u, base_url: 'http://127.0.0.1:9/v1', models: [small],"
        f" price: {{input_per_mtok: 1, output_per_mtok: 1}}}}]\n"
        f"state: {{database: '{database_url}', secrets: '{tmp_path / 'guard.secrets'}'}}\n"
    )
    return path


def run(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "spiritsafe", "evidence", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.slow
def test_the_command_line(guard_yaml: Path, database_url: str, tmp_path: Path) -> None:
    config = ["--config", str(guard_yaml)]
    made = json.loads(run("canary", "new", "--generate", "20", "--json", *config))
    (tmp_path / "answers.txt").write_text("one\n\ntwo\n")
    own = run("canary", "new", "--prompt", PROMPT, "--variants", str(tmp_path / "answers.txt"), *config)
    assert PROMPT in own and "committed to 2 answers" in own
    assert ("answer:   one" in own) != ("answer:   two" in own)
    assert run("canary", "retire", made["id"], *config) == f"{made['id']}: retired\n"
    listed = json.loads(run("canary", "list", "--json", *config))["canaries"]
    assert [(entry["answers"], entry["state"]) for entry in listed] == [(20, "retired"), (2, "active")]
    shown = json.loads(run("canary", "show", made["id"], "--json", *config))
    whole = json.loads(run("canary", "show", made["id"], "--json", "--secret", *config))
    assert shown["variant"] == made["answer"] and "variants" not in shown
    assert verify_canary(shown, made["canary_commit"]) and verify_canary(whole, made["canary_commit"])
    assert "nobody asks" in run(
        "canary", "new", "--prompt", "Why?", "--variants", str(tmp_path / "answers.txt"), *config, code=2
    )
    assert "--generate N" in run("canary", "new", "--prompt", PROMPT, *config, code=2)

    async def committed() -> list[str]:
        async with await Database.open(database_url) as db:
            assert (await verify_ledger(db)).ok
            rows = await db.fetch("SELECT payload FROM ledger ORDER BY seq")
        return [orjson.loads(row["payload"])["data"]["canary"] for row in rows]

    assert asyncio.run(committed()) == [entry["id"] for entry in listed]
    out = tmp_path / "twins.jsonl"
    assert json.loads(run("twins", "export", "--out", str(out), "--json", *config)) == {
        "out": str(out),
        "pairs": 0,
        "committed": 0,
    }
    assert os.stat(out).st_mode & 0o777 == 0o600
    assert "exists" in run("twins", "export", "--out", str(out), *config, code=2)
