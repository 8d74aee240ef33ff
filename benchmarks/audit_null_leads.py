"""Equality, similarity and lineage of `proof_audit_null`: leads at most, and exact all the same."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from benchmarks.audit_null_answers import EQUAL, SAMPLED, SAMPLES, Asked, records
from benchmarks.audit_null_students import TOKENS, weights_of
from benchmarks.audit_students import PROMPTS
from benchmarks.small_decoders import trained
from safetensors.torch import save_file

from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import EqualityConfig, LineageConfig, SimilarityConfig
from spiritsafe.audit.tests import open_test

__all__ = ["CONTROLS", "equality", "lineage_reordered", "lineage_strangers", "similarity"]

Trials = Iterator[Mapping[str, float]]
Arrays = dict[str, torch.Tensor]
CONTROLS = 19
_KEPT = ("mlp.gate_proj.weight", "mlp.up_proj.weight")


def equality(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
    """One model's replies to each prompt, dealt into "before" and "now"; fresh permutations too."""
    said = [asked.answers(one)["equality"] for one in asked.innocents if one.name in SAMPLED]
    ids = [item.id for item in asked.equality.items()]
    half = SAMPLES // 2
    plan = EqualityConfig(kind="equality", reference="before", samples=half, max_tokens=24, permutations=999)
    with TemporaryDirectory() as folder:
        for answers in itertools.islice(itertools.cycle(said), trials):
            texts = np.array([answers[name]["text"] for name in ids], object).reshape(EQUAL, SAMPLES)
            dealt = random.permuted(texts, axis=1)
            before = zip(PROMPTS, dealt[:, :half], strict=False)
            file = _replies(Path(folder) / "before", [(p, t) for p, row in before for t in row])
            test = open_test(plan, Evidence({"before": file}, random.bytes(16)))
            now = zip(test.items(), dealt[:, half:].reshape(-1), strict=True)
            yield {"": test.judge(records(test, {item.id: {"text": text} for item, text in now})).log10_p}


def similarity(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
    """An innocent drawn by chance against others drawn by chance. The teacher itself is not among them."""
    names = [one.name for one in asked.innocents if one.name != "teacher"]
    answers = {one.name: asked.answers(one)["similarity"] for one in asked.innocents}
    with TemporaryDirectory() as folder:
        files = {"reference": asked.reference}
        for name in names:
            texts = [answers[name][item.id]["text"] for item in asked.similarity.items()]
            files[name] = _replies(Path(folder) / name, list(zip(PROMPTS, texts, strict=False)))
        for _ in range(trials):
            suspect, *controls = random.choice(names, 1 + CONTROLS, replace=False).tolist()
            plan = SimilarityConfig(
                kind="similarity", reference="reference", controls={c: c for c in controls}, max_tokens=TOKENS
            )
            test = open_test(plan, Evidence(files, b""))
            yield {"": test.judge(records(test, answers[suspect])).log10_p}


def lineage_strangers(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
    """Two tiny decoders that learned the same from initialisations of their own; each pair is used once."""
    models = trained(2 * trials, int(random.integers(2**31)))
    with TemporaryDirectory() as folder:
        for teacher, suspect in zip(models[::2], models[1::2], strict=True):
            yield {"": _lineage(Path(folder), teacher, suspect)}


def lineage_reordered(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
    """Innocents against a student whose hidden units and coordinates are put into a fresh order in every trial: they
    share its origin, and no order."""
    from spiritsafe.teachers import load_weights

    chosen = [one for one in asked.innocents if one.student.layers == 4]
    loaded = {one.name: _arrays(load_weights(str(weights_of(asked.teacher, asked.run, one)))) for one in chosen}
    with TemporaryDirectory() as folder:
        for number in range(trials):
            suspect, teacher = (chosen[(number + by) % len(chosen)].name for by in (0, 1 + number // len(chosen)))
            yield {"": _lineage(Path(folder), _reordered(loaded[teacher], random), loaded[suspect])}


def _lineage(folder: Path, teacher: Arrays, suspect: Arrays) -> float:
    """As an audit of weights asks and judges. The suspect is looked at through its tensors only."""
    save_file(teacher, folder / "model.safetensors")
    test = open_test(LineageConfig(kind="lineage", teacher="weights/t"), Evidence({"weights/t": folder}, b""))
    model = SimpleNamespace(state_dict=lambda: suspect)
    seen: Any = SimpleNamespace(weights=SimpleNamespace(model=model, source="suspect"))
    (got,) = asyncio.run(test.ask(seen, test.items()))
    return test.judge(records(test, {item.id: got for item in test.items()})).log10_p


def _arrays(weights: Any) -> Arrays:
    """What lineage looks at: gates and projections of the units, the embeddings of the first tokens."""
    state = weights.model.state_dict()
    kept = {name: tensor.float().clone() for name, tensor in state.items() if name.endswith(_KEPT)}
    return kept | {"model.embed_tokens.weight": state["model.embed_tokens.weight"][:4096].float().clone()}


def _reordered(arrays: Arrays, random: np.random.Generator) -> Arrays:
    """The same function of tokens, its units and coordinates in another order."""
    columns = torch.tensor(random.permutation(arrays["model.embed_tokens.weight"].shape[1]))
    out = {name: tensor[:, columns] for name, tensor in arrays.items()}
    for name in [name for name in out if name.endswith(_KEPT[0])]:
        rows = torch.tensor(random.permutation(len(out[name])))
        for which in (name, name.replace("gate_proj", "up_proj")):
            out[which] = out[which][rows]
    return {name: tensor.contiguous() for name, tensor in out.items()}


def _replies(file: Path, rows: Sequence[tuple[str, str]]) -> Path:
    file.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows), "utf-8")
    return file
