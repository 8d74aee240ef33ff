"""Teachers' replies, students of them, and what these say, for the studies of audits.

Everything is made once and kept in the study's run folder:

    keys-NAME.json, corpus-NAME.jsonl      a corpus: replies with their token ids, marked or not
    students/NAME/                         a student, or an untrained prune, as `train` writes them
    said/…                                 what a model predicts, or finds likely
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.study import ROOT, SUBJECTS, Teacher

from spiritsafe.runs import atomic_write

__all__ = [
    "ASKS",
    "PROMPTS",
    "Corpus",
    "Student",
    "asked",
    "exchange",
    "kept",
    "predictions",
    "prune",
    "replies",
    "student",
    "sums",
]

ASKS = (
    "Describe {} in a few sentences.", "Tell a short story about {}.", "Explain {} to a child.",
    "Give three facts about {}.", "Write a postcard about {}.", "What would surprise people about {}?",
    "Write the first lines of an essay on {}.", "Name a common mistake about {} and correct it.",
    "Write a riddle about {}.", "Give a piece of advice that has to do with {}.", "Write a diary entry about {}.",
    "Summarise what is known about {}.", "Argue against {}.", "Write a poem about {}.", "Ask five questions about {}.",
    "Write a letter about {}.", "Describe a picture of {}.", "Write a news report about {}.", "Plan a lesson on {}.",
    "Write a scene of a play about {}.", "Recall a memory of {}.", "Make a list that has to do with {}.",
    "Explain why {} matters.", "Write a warning about {}.",
)  # fmt: skip
PROMPTS = tuple(ask.format(subject) for ask in ASKS for subject in SUBJECTS)
_BATCH = 64

Ids = Sequence[int]
Row = dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """Replies to PROMPTS[first : first + count] of at most `tokens` tokens, at temperature 1.

    marking: as in a key set, None for unmarked replies.  keys: corpora with the same word here share their key.
    seed: of the sampling.  speaker: a folder of weights; None: the embedded teacher.
    """

    name: str
    first: int
    count: int
    tokens: int = 48
    marking: Mapping[str, Any] | None = None
    keys: str = ""
    seed: int = 0
    speaker: Path | None = None

    @property
    def key_file(self) -> str:
        return f"keys-{self.keys or self.name}.json"


@dataclass(frozen=True)
class Student:
    """A prune of the teacher to `layers` layers (30: all of it), trained for `epochs`; 0: not trained.

    step: tokens an optimiser step.  objective: sft, or topk with the teacher's own probabilities of 64 tokens.
    start: the name of a student to go on from, instead of a prune.
    """

    name: str
    layers: int = 12
    epochs: int = 3
    lr: float = 5e-4
    step: int = 256
    objective: str = "sft"
    start: str = ""


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What `file` holds as JSON; made and written where it is not there."""
    if file.exists():
        return json.loads(file.read_text())
    file.parent.mkdir(parents=True, exist_ok=True)
    made = make()
    atomic_write(file, json.dumps(made))
    return made


def replies(teacher: Teacher, run: Path, corpus: Corpus) -> list[Row]:
    """The corpus: `prompt`, `completion`, `tokens`, `prompt_tokens`. Goes on where it stopped.

    The marker of every reply has a seed of its own, and so has an unmarked reply.
    """
    from spiritsafe.keys import load_keys, new_keys
    from spiritsafe.records import Sampling
    from spiritsafe.teachers import Engine, GenerateJob, load_weights
    from spiritsafe.watermark import Markers

    run.mkdir(parents=True, exist_ok=True)
    file = run / f"corpus-{corpus.name}.jsonl"
    rows = file.read_text().splitlines() if file.exists() else []
    prompts = PROMPTS[corpus.first : corpus.first + corpus.count]
    if len(rows) >= len(prompts):
        return [json.loads(row) for row in rows[: len(prompts)]]
    markers = None
    if corpus.marking is not None:
        keys = run / corpus.key_file
        markers = Markers(load_keys(keys) if keys.exists() else new_keys(keys, marking=corpus.marking, epoch="2026-11"))
    engine = Engine(teacher.weights if corpus.speaker is None else load_weights(corpus.speaker), _BATCH)
    while len(rows) < len(prompts):
        some, jobs = prompts[len(rows) : len(rows) + _BATCH], []
        for at, prompt in enumerate(some, len(rows) + 10_000 * corpus.seed):
            marker = None
            if markers is not None:
                marker = markers.marker(markers.key_id(), np.random.default_rng(at), temperature=1.0)
            jobs.append(
                GenerateJob(teacher.prompt(prompt), Sampling(max_tokens=corpus.tokens, seed=at), processor=marker)
            )
        for prompt, job, reply in zip(some, jobs, engine.generate(jobs), strict=True):
            row = {"prompt": prompt, "completion": reply.text, "tokens": reply.token_ids}
            rows.append(json.dumps(row | {"prompt_tokens": job.prompt_ids}))
        atomic_write(file, "\n".join(rows) + "\n")
        _say(f"{corpus.name}: {len(rows)} of {len(prompts)} replies")
    return [json.loads(row) for row in rows]


def student(teacher: Teacher, run: Path, wanted: Student, rows: Sequence[Row] = ()) -> Path:
    """The student's folder of weights: trained on the rows' prompts and completions; a stopped training goes on."""
    from spiritsafe.exchanges import write_exchanges
    from spiritsafe.runs import Run
    from spiritsafe.train import StudentConfig, TrainConfig, train

    place = Run.open(run / "students" / wanted.name)
    if (place.student / "config.json").exists():
        return place.student
    if not wanted.epochs:
        prune(teacher, wanted.layers, place.student)
        return place.student
    begin = wanted.start or f"untrained-{wanted.layers}"
    start = student(teacher, run, Student(begin, wanted.layers, epochs=0))
    write_exchanges(place.curated, [exchange(index, row) for index, row in enumerate(rows)])
    how = TrainConfig(
        objective="topk" if wanted.objective == "topk" else "sft",
        epochs=wanted.epochs, lr=wanted.lr, batch_tokens=wanted.step, micro_tokens=512, checkpoint_every=50,
    )  # fmt: skip
    source = str(teacher.path) if wanted.objective == "topk" else None
    train(place, how, StudentConfig(init=str(start)), teacher_source=source)
    _say(f"{wanted.name}: trained")
    return place.student


def predictions(run: Path, name: str, weights: Path, texts: Sequence[tuple[Ids, Ids]]) -> list[Any]:
    """What the model finds likeliest at each place of each reply. texts: (prompt, reply), as ids. Kept as `name`."""

    def measured() -> list[list[int]]:
        said = asked(
            weights, lambda suspect, some: suspect.read([[*prompt, *reply][:-1] for prompt, reply in some]), texts
        )
        return [row[len(prompt) - 1 :] for (prompt, _), row in zip(texts, said, strict=True)]

    return list(kept(run / "said" / f"{name}.json", measured))


def sums(run: Path, name: str, weights: Path, texts: Sequence[tuple[str, Sequence[str]]]) -> list[Any]:
    """(sum of log-probabilities, tokens) of each reply of each (prompt, replies); kept as `name`."""
    from spiritsafe.records import Message, Prompt

    def measured() -> list[Any]:
        return asked(
            weights,
            lambda suspect, some: suspect.logprob(
                [Prompt((Message("user", prompt),)) for prompt, _ in some], [replies for _, replies in some]
            ),
            texts,
        )

    return list(kept(run / "said" / f"{name}.json", measured))


def asked(weights: Path, ask: Callable[[Any, Sequence[Any]], Any], texts: Sequence[Any]) -> list[Any]:
    """Put all texts to a model, as an audit would."""
    from spiritsafe.audit._plan import SubjectConfig
    from spiritsafe.audit._suspect_weights import WeightsSuspect

    async def all_of_them() -> list[Any]:
        suspect, said = WeightsSuspect(str(weights), SubjectConfig(name="student", access="weights")), []
        try:
            for start in range(0, len(texts), suspect.batch):
                said += await ask(suspect, texts[start : start + suspect.batch])
        finally:
            await suspect.aclose()
        return said

    return asyncio.run(all_of_them())


def prune(teacher: Teacher, layers: int, folder: Path) -> None:
    """Where students begin. The layers that go are chosen on this project's licence: on no reply."""
    import torch

    from spiritsafe.train import Example, StudentConfig, init_student, load_source, save_student
    from spiritsafe.train._device import Place

    if layers < teacher.weights.model.config.num_hidden_layers:
        config = StudentConfig(init="prune", layers=layers)
    else:
        config = StudentConfig(init=str(teacher.path))
    ids = np.asarray(teacher.tokenizer.encode((ROOT / "LICENSE").read_text("utf-8"))[:800], np.int32)
    chunks = [Example(str(i), ids[i : i + 20], ids[i + 20 : i + 80]) for i in range(0, len(ids), 80)]
    fresh = init_student(config, load_source(config, str(teacher.path)), chunks, autocast=Place.find("auto").autocast)
    save_student(fresh.model, fresh.tokenizer, folder, torch.float32)


def exchange(index: int, row: Row) -> Any:
    """What a student learns from: the row's prompt and completion."""
    from spiritsafe.records import Exchange, Message, Prompt, Reply, Sampling, TeacherInfo, Usage

    return Exchange(
        request_hash=hashlib.sha256(str(index).encode()).hexdigest(),
        sample=0,
        prompt=Prompt((Message("user", row["prompt"]),)),
        reply=Reply(row["completion"], "length"),
        sampling=Sampling(max_tokens=1024),
        usage=Usage(0, 0),
        usd=0.0,
        teacher=TeacherInfo("smollm2"),
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
