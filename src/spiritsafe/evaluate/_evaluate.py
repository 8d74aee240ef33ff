"""Student against teacher on held-out answers, from weights to metrics.json. At most two models are loaded at a time,
three where the student is pruned from something else than the teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spiritsafe.errors import BadInput
from spiritsafe.evaluate._bench import Bench
from spiritsafe.evaluate._bootstrap import Resampler
from spiritsafe.evaluate._config import EvaluateConfig
from spiritsafe.evaluate._generate import answers, distinct_prompts, time_both
from spiritsafe.evaluate._heldout import Yardstick, calibration, held_out, yardstick
from spiritsafe.evaluate._metrics import fidelity, recovered_metrics, student_intervals, untrained_metrics
from spiritsafe.evaluate._untrained import best_untrained
from spiritsafe.progress import Progress, Silent
from spiritsafe.records import Exchange
from spiritsafe.runs import Run, atomic_write
from spiritsafe.spend import Price
from spiritsafe.teachers import Weights, load_weights
from spiritsafe.train import Example, Source, StudentConfig, init_student, load_source, prune_layers

__all__ = ["evaluate"]

_CALIBRATION, _RIVAL_CALIBRATION = 10, 4
_STEPS = ("teacher", "student", "speed", "student's answers", "untrained start", "its answers", "untrained prunes")


def evaluate(
    run: Run,
    config: EvaluateConfig,
    *,
    student_config: StudentConfig,
    teacher_source: str | None,
    teacher_price: Price | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure `run.student` on the held-out exchanges of `run.curated`; writes `run.metrics` and `run.samples`.

    student_config: what the student started from, which is measured beside it as `base`.
    teacher_source: the teacher's weights if they are here; without them the exchanges' own log-probabilities serve.
    facts: `collected`, `curated` and `train`, what those stages noted; they are carried into the metrics.

    Returns the metrics. NLL is in nats per completion token (per byte where tokenizers differ), KL is forward, T = 1.

    Raises:
        BadInput: no student, no held-out exchanges, or weights that cannot be loaded.
    """
    facts = facts or {}
    report = _Steps(progress or Silent())
    exchanges = held_out(run, config.max_tokens)
    if not run.student.is_dir():
        raise BadInput(f"{run.student}: no student here; run `spiritsafe train` on this run first")
    report.begin("teacher")
    student = load_weights(run.student, dtype="float32")
    teacher = None if teacher_source is None else load_weights(teacher_source, dtype="float32")
    measure = yardstick(exchanges, student, teacher)
    bench, teacher_scores = Bench.open(measure, teacher, student.vocab_size, config.batch_tokens)
    report.begin("student")
    student_scores = bench.scores(student.model)
    report.begin("speed")
    speed = _speed(teacher, student, exchanges, config)
    report.begin("student's answers")
    shown = distinct_prompts(exchanges, config.samples)
    said = answers(student, shown, config.seed)
    student_row = _described(student.model)

    report.begin("untrained start")
    kept = (facts.get("train") or {}).get("kept_layers")
    lessons = calibration(run, student, _CALIBRATION)
    start = _untrained_start(student_config, teacher_source, teacher, kept, lessons, student.device)
    student = replace(student, model=start.model)  # lets go of the trained weights
    base_scores = bench.scores(student.model)
    report.begin("its answers")
    base_said = answers(student, shown, config.seed)
    base_row = _described(student.model) | {"start": start.description}
    student = replace(student, model=None)
    report.begin("untrained prunes")
    untrained = None
    if start.source is not None and start.kept is not None:
        known = {start.kept: base_scores}
        # a start already chosen by sensitivity needs no rival of its own kind
        few = [] if student_config.strategy == "sensitivity" else lessons[:_RIVAL_CALIBRATION]
        untrained = best_untrained(start.source, start.kept, bench, known, few, config.screen_tokens)

    teacher_nll = measure.teacher_nll if teacher_scores is None else teacher_scores.nll
    resampler = Resampler(int(measure.prompts.max()) + 1, config.bootstrap, config.seed)
    metrics = {
        "teacher": _teacher_row(teacher, teacher_nll, measure, speed, teacher_price, config),
        "base": base_row | fidelity(base_scores, measure),
        "student": student_row
        | fidelity(student_scores, measure)
        | student_intervals(student_scores, teacher_nll, measure, resampler)
        | {"tok_per_s": speed.get("student_tok_per_s")}
        | {"usd_per_mtok": _usd_per_mtok(speed.get("student_tok_per_s"), config.usd_per_hour)},
        "best_untrained": None if untrained is None else untrained_metrics(untrained, student_scores, measure),
        "recovered": recovered_metrics(teacher_nll, base_scores, student_scores, measure, resampler),
        **_carried(facts),
        "n_exchanges": len(measure.exchanges),
        "n_prompts": resampler.prompts,
        "n_tokens": int(measure.units.sum()),
        "nll_unit": measure.unit,
        "kl_kind": measure.kl_kind,
        "speed": speed,
        "samples": {
            "n": len(shown),
            "seed": config.seed,
            "temperature": shown[0].sampling.temperature if shown else None,
        },
    }
    rows = [_sample(e, ours, base) for e, ours, base in zip(shown, said, base_said, strict=True)]
    atomic_write(run.samples, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    atomic_write(run.metrics, json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    report.end()
    return metrics


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """The student before training. source: the model it was pruned from; kept: the layers it kept."""

    model: Any
    description: str
    source: Any = None
    kept: tuple[int, ...] | None = None


def _untrained_start(
    config: StudentConfig,
    teacher_source: str | None,
    teacher: Weights | None,
    kept: Any,
    lessons: Sequence[Example],
    device: Any,
) -> _Start:
    if config.init != "prune":
        student = init_student(config, load_source(config, teacher_source))
        return _Start(student.model.to(device).eval(), student.description)
    name = config.source or teacher_source
    if teacher is not None and name == teacher_source:
        source = Source(teacher.source, teacher.tokenizer, teacher.model, teacher.context, teacher.revision)
    else:
        source = load_source(config, teacher_source)
    assert source.model is not None
    if kept is None:
        student = init_student(config, source, lessons)
        assert student.kept_layers is not None
        return _Start(student.model.to(device).eval(), student.description, source.model, student.kept_layers)
    layers = tuple(int(layer) for layer in kept)
    total = int(source.model.config.get_text_config().num_hidden_layers)
    model = prune_layers(source.model, layers).to(device).eval()
    return _Start(model, f"{len(layers)} of {total} layers, untrained", source.model, layers)


def _speed(
    teacher: Weights | None, student: Weights, exchanges: list[Exchange], config: EvaluateConfig
) -> dict[str, Any]:
    prompts = distinct_prompts(exchanges, config.speed_prompts)
    if not prompts:
        return {"ratio": None, "note": "not measured: evaluate.speed_prompts is 0"}
    if teacher is None:
        return {
            "ratio": None,
            "note": "the teacher is only served: its speed over the network does not compare with the student's here",
        }
    return time_both(teacher, student, prompts, config.speed_tokens, config.speed_repeats)


def _teacher_row(
    teacher: Weights | None,
    nll: Any,
    measure: Yardstick,
    speed: Mapping[str, Any],
    price: Price | None,
    config: EvaluateConfig,
) -> dict[str, Any]:
    tok_per_s = speed.get("teacher_tok_per_s")
    usd = float(price.output_per_mtok) if price is not None else _usd_per_mtok(tok_per_s, config.usd_per_hour)
    row = {"params": None, "layers": None} if teacher is None else _described(teacher.model)
    mean = None if nll is None else float(nll.sum() / measure.units.sum())
    return row | {"nll": mean, "tok_per_s": tok_per_s, "usd_per_mtok": usd}


def _described(model: Any) -> dict[str, Any]:
    return {"params": int(model.num_parameters()), "layers": int(model.config.get_text_config().num_hidden_layers)}


def _usd_per_mtok(tok_per_s: float | None, usd_per_hour: float | None) -> float | None:
    return None if not tok_per_s or usd_per_hour is None else usd_per_hour / (3600 * tok_per_s) * 1e6


_PROMISED: dict[str, dict[str, Any]] = {
    "collected": dict.fromkeys(("exchanges", "tokens_in", "tokens_out", "usd", "budget_usd")),
    "curated": {"kept": None, "dropped": {}},
    "train": dict.fromkeys(("tokens", "seconds", "peak_rss_mb")),
}


def _carried(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What earlier stages noted; every promised key is there, null where a stage did not say."""
    return {name: {**promised, **(facts.get(name) or {})} for name, promised in _PROMISED.items()}


def _sample(e: Exchange, student: str, base: str) -> dict[str, Any]:
    return {
        "prompt": e.prompt.messages[-1].content,
        "messages": [{"role": m.role, "content": m.content} for m in e.prompt.messages],
        "teacher": e.reply.text,
        "base": base,
        "student": student,
    }


class _Steps:
    """Progress through the fixed list of steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, step: str) -> None:
        self._progress.update("evaluate", _STEPS.index(step), len(_STEPS), step)

    def end(self) -> None:
        self._progress.update("evaluate", len(_STEPS), len(_STEPS), "")
