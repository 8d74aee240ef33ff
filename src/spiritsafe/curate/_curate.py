"""Exchanges → training set, in two passes: the first reads texts and decides, the second copies the rows that stay.

Log-probabilities, most of a file's bytes, are touched only by the copy, a batch at a time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritsafe.curate._config import CurateConfig
from spiritsafe.curate._report import CurationReport, Example, StepReport
from spiritsafe.curate._step import Check, Context, Row
from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.exchanges import open_exchanges
from spiritsafe.progress import Progress, Silent
from spiritsafe.records import Message
from spiritsafe.runs import Run, atomic_write

__all__ = ["curate"]

_BATCH = 512
_COLUMNS = ["id", "prompt", "completion", "finish_reason", "output_tokens", "token_ids", "split"]
_EMPTY_HOLDOUT = "empty_holdout"


def curate(run: Run, config: CurateConfig, *, progress: Progress | None = None) -> CurationReport:
    """Write `run.curated` and `run.curation` from `run.exchanges`.

    Steps see training rows only. Held-out rows pass untouched, but for empty completions, which nothing can be measured
    on. Deterministic: the same exchanges and config keep the same rows in the same order.

    Raises:
        BadInput: the exchanges are missing, damaged or not exchanges, or a step's benchmark file is unusable.
        SpiritsafeError: no training row is left (curation.json is still written), or the disk is full.
    """
    watch = progress if progress is not None else Silent()
    rows = _count(run.exchanges)
    keep, report = _decide(run.exchanges, rows, config, watch)
    try:
        atomic_write(run.curation, json.dumps(report.details(), indent=2, ensure_ascii=False) + "\n")
        if not report.kept_train:
            raise SpiritsafeError(_nothing_left(run, report))
        _copy(run.exchanges, run.curated, keep, watch)
    except OSError as error:
        raise SpiritsafeError(
            f"{run.path}: cannot write ({error.strerror or error}); free some space, run again"
        ) from None
    return report


def _decide(
    path: Path, rows: int, config: CurateConfig, progress: Progress
) -> tuple[NDArray[np.bool_], CurationReport]:
    context = Context(lambda: _rows(path), progress.say)
    steps: list[tuple[StepReport, Check]] = []
    for step in config.steps:
        used = sum(report.name.partition("#")[0] == step.name for report, _ in steps)
        report = StepReport(f"{step.name}#{used + 1}" if used else step.name, step.model_dump(mode="json"))
        started = time.perf_counter()
        steps.append((report, step.start(context)))
        report.seconds = time.perf_counter() - started
    holdout = StepReport(_EMPTY_HOLDOUT, {})
    keep = np.ones(rows, np.bool_)
    kept = {"train": 0, "holdout": 0}
    for number, row in enumerate(_rows(path)):
        if row.split == "train":
            keep[number] = _passes(row, steps)
        else:
            holdout.seen += 1
            if not row.completion.strip():
                keep[number] = False
                holdout.drop(Example.of(row.id, "empty", row.question, row.completion))
        kept["train" if row.split == "train" else "holdout"] += int(keep[number])
        if number % _BATCH == 0:
            progress.update("curate", number, 2 * rows)
    reports = (*(report for report, _ in steps), holdout)
    return keep, CurationReport(rows, kept["train"], kept["holdout"], reports)


def _passes(row: Row, steps: list[tuple[StepReport, Check]]) -> bool:
    for report, check in steps:
        report.seen += 1
        started = time.perf_counter()
        why = check(row)
        report.seconds += time.perf_counter() - started
        if why is not None:
            report.drop(Example.of(row.id, why, row.question, row.completion))
            return False
    return True


def _copy(source: Path, target: Path, keep: NDArray[np.bool_], progress: Progress) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial = target.with_name(target.name + ".partial")
    done = 0
    try:
        with open_exchanges(source) as file, pq.ParquetWriter(partial, file.schema_arrow, compression="zstd") as writer:
            for batch in file.iter_batches(batch_size=_BATCH):
                writer.write_batch(batch.filter(pa.array(keep[done : done + len(batch)])))
                done += len(batch)
                progress.update("curate", len(keep) + done, 2 * len(keep))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    with open_exchanges(path) as file:
        try:
            for batch in file.iter_batches(batch_size=_BATCH, columns=_COLUMNS):
                lengths = pc.list_value_length(batch.column("token_ids")).to_pylist()
                columns = batch.drop_columns(["token_ids"]).to_pylist()
                yield from (_row(row, length) for row, length in zip(columns, lengths, strict=True))
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{path}: damaged ({error}); restore it or collect again") from None


def _row(row: dict[str, Any], length: int | None) -> Row:
    """`length` is the completion's own; without token ids the call's usage stands for it."""
    messages = tuple(Message(m["role"], m["content"]) for m in row["prompt"])
    completion = "".join(m["content"] or "" for m in row["completion"])
    tokens = row["output_tokens"] if length is None else length
    return Row(row["id"], messages, completion, row["finish_reason"], tokens, row["split"])


def _count(path: Path) -> int:
    with open_exchanges(path) as file:
        rows: int = file.metadata.num_rows
    if not rows:
        raise BadInput(f"{path}: has no rows; collect first")
    return rows


def _nothing_left(run: Run, report: CurationReport) -> str:
    by_count = sorted(report.dropped.items(), key=lambda item: -item[1])
    if not by_count:
        return f"{run.exchanges}: has no training rows, only held-out ones; lower evaluate.holdout or collect more"
    step, count = by_count[0]
    return (
        f"{run.exchanges}: no training row is left; {step} dropped most ({count}); "
        f"see {run.curation}, then relax that step in the recipe's curate list or collect more"
    )
