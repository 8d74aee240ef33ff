"""`spiritsafe watermark detect`: does a text, or a corpus, carry the marks of a key?"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiritsafe.cli._output import Json, print_json, print_table
from spiritsafe.cli._progress import watching
from spiritsafe.cli._watermark_inputs import Input, open_tokenizer, read_inputs
from spiritsafe.cli._watermark_keys import PassphraseEnv, PassphraseFile, read_keys
from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    from spiritsafe.watermark._corpus import Row
    from spiritsafe.watermark._types import Detector

__all__ = ["register"]

_MANY = 50  # documents: longer tables tell a person nothing


def register(watermark: typer.Typer) -> None:
    watermark.command(
        epilog="Example: spiritsafe watermark detect leak.txt --keys KEYS.json --tokenizer model.gguf --json"
    )(detect)


def detect(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT…", help="Text, JSONL or Parquet files; - is stdin.")],
    keys: Annotated[Path | None, typer.Option("--keys", metavar="KEYS.json", help="The key set to test for.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            help="Test for an engine's own marks: vllm-gumbel|-dual, sglang-gumbel|-dual, hf-kgw, hf-synthid.",
        ),
    ] = None,
    params: Annotated[
        Path | None, typer.Option("--params", metavar="PARAMS.json", help="The engine's own parameters.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="PATH", help="The marking model's tokenizer; token ids need none."),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option("--scheme", help="Marks of another scheme, such as kgw for greedy replies.")
    ] = None,
    epoch: Annotated[
        list[str] | None, typer.Option("--epoch", metavar="NAME", help="Only these epochs; default: all.")
    ] = None,
    decoys: Annotated[
        int, typer.Option(min=0, help="Decoy keys K for the rank p-value, at best 1/(K+1); 0: none.")
    ] = 1000,
    decoy_seed: Annotated[
        str | None, typer.Option("--decoy-seed", metavar="TEXT", help="Public seed that the decoy keys come from.")
    ] = None,
    pool: Annotated[
        bool, typer.Option("--pool", help="Only the corpus as a whole, repeated passages counted once.")
    ] = False,
    level: Annotated[float, typer.Option(help="The p-value you would act on; spans are found at it too.")] = 1e-6,
    spans: Annotated[
        bool | None,
        typer.Option("--spans/--no-spans", help="Locate the marked parts; default: in texts of 600 tokens and more."),
    ] = None,
    entropy_model: Annotated[
        str | None,
        typer.Option("--entropy-model", metavar="PATH", help="Weigh tokens by how free this model was to choose them."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.jsonl", help="Write a row a document here, not to the output.")
    ] = None,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Test texts for the marks of a key set or of a serving engine, with exact p-values."""
    if not 0 < level < 1:
        raise BadInput(f"--level {level:g}: a level lies between 0 and 1, such as 1e-6")
    if (keys is None) == (engine is None):
        raise BadInput("say what to test for: either --keys KEYS.json or --engine NAME --params PARAMS.json")
    from spiritsafe.watermark._corpus import DECOY_SEED, Corpus

    key_set = None
    if keys is not None:
        from spiritsafe.cli._watermark_trace import scheme_name
        from spiritsafe.watermark._native import NativeDetector

        key_set = read_keys(keys, passphrase_env, passphrase_file)
        detector: Detector = NativeDetector(key_set, None, epoch, scheme_name(scheme))
        vocab = None
    else:
        if scheme is not None or epoch:
            raise BadInput("--scheme and --epoch belong to --keys; an engine's marks have neither")
        detector, vocab = _engine(str(engine), params)
    loaded = None if tokenizer is None else open_tokenizer(tokenizer, key_set)
    vocab = vocab or (None if loaded is None else len(loaded))
    corpus = Corpus(
        detector,
        decoys=decoys,
        seed=DECOY_SEED if decoy_seed is None else decoy_seed.encode(),
        log10_level=math.log10(level),
        spans=False if pool else spans,
        kind=_law(detector) if entropy_model else None,
        pool=entropy_model is None,
    )
    weigh = _weights(entropy_model) if entropy_model else None
    rows: list[dict[str, Any]] = []
    read = 0
    with watching() as progress, _sink(out) as write:
        for document in read_inputs(inputs, loaded):
            _check(document, vocab)
            weights = None if weigh is None else weigh(document.ids)
            row = corpus.observe(document.ids, document.first, weights)
            read += 1
            if not pool:
                if write:
                    write(_described(document.id, row))
                elif len(rows) < _MANY or as_json:
                    rows.append(_described(document.id, row))
            progress.update("documents", read, None, f"{row.n_tokens} tokens")
    if not read:
        raise BadInput(f"{', '.join(inputs)}: no document in it; give a text, or JSONL rows with text or tokens")
    found: dict[str, Any] = {"scheme": detector.scheme, "documents": rows}
    if entropy_model is None:
        pooled = _described("", corpus.pooled())
        found["pooled"] = {key: value for key, value in pooled.items() if key not in ("id", "spans", "span_log10_p")}
    if as_json:
        print_json(found)
    else:
        _say(found, read, level)


def _engine(engine: str, params: Path | None) -> tuple[Detector, int | None]:
    from spiritsafe.watermark.adapters import engine_detector

    if params is None:
        raise BadInput(f"--engine {engine}: give the engine's parameters with --params PARAMS.json")
    try:
        given = json.loads(params.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{params}: no such file; give a JSON object of the engine's parameters") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{params}: not readable as JSON ({error})") from None
    if not isinstance(given, dict):
        raise BadInput(f"{params}: not a JSON object; give the engine's fields and values")
    vocab = given.get("vocab_size")
    return engine_detector(engine, given), vocab if type(vocab) is int else None


def _check(document: Input, vocab: int | None) -> None:
    if document.text is not None and not document.text.strip():
        raise BadInput(f"{document.id}: empty; there is nothing to test")
    if vocab is not None and len(document.ids) and int(document.ids.max()) >= vocab:
        at = int(document.ids.argmax())
        raise BadInput(
            f"{document.id}: token id {int(document.ids[at])} at position {at} is outside the vocabulary of {vocab};"
            " these ids are another tokenizer's"
        )


def _law(detector: Detector) -> tuple[str, float | None]:
    if detector.scheme == "gumbel-dual":
        return "exponential", None
    if detector.scheme == "kgw":
        return "bernoulli", detector.marking.gamma  # type: ignore[attr-defined]
    raise BadInput(
        f"--entropy-model: weights are for gumbel-dual and kgw marks of a key set, not for {detector.scheme}"
    )


def _weights(source: str) -> Callable[[Any], Any]:
    """Entropy weights of every token of a document, by a local model that has not seen the key."""
    import numpy as np
    import torch

    from spiritsafe.teachers import load_weights
    from spiritsafe.watermark._entropy import entropy_weights

    weights = load_weights(source)

    @torch.inference_mode()
    def weigh(ids_T: Any) -> Any:
        entropies = np.zeros(len(ids_T))
        step = weights.context // 2
        for start in range(0, len(ids_T), step):  # each token sees at least half a context before it
            begin = max(0, start - step)
            ids = torch.tensor(ids_T[begin : start + step].astype(np.int64), device=weights.device)[None]
            log_p = torch.log_softmax(weights.model(input_ids=ids).logits[0].float(), -1)
            entropy = -(log_p.exp() * log_p).sum(-1).cpu().numpy()
            wanted = np.arange(max(start, 1), min(start + step, len(ids_T)))
            entropies[wanted] = entropy[wanted - 1 - begin]  # the distribution at t − 1 chose token t
        return entropy_weights(entropies)

    return weigh


@contextmanager
def _sink(out: Path | None) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Writes rows to a file that appears when all are written."""
    if out is None:
        yield None
        return
    if not out.parent.is_dir():
        raise BadInput(f"--out {out}: no folder {out.parent}; make it first")
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file)
        os.chmod(name, 0o644)
        os.replace(name, out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _described(name: str, row: Row) -> dict[str, Any]:
    described = {"id": name, **asdict(row)}
    described["spans"] = [[span.start, span.end] for span in row.spans]
    described["span_log10_p"] = [span.log10_p for span in row.spans]
    return described


def _say(found: dict[str, Any], read: int, level: float) -> None:
    rows = found["documents"]
    if rows:
        print_table(
            ["document", "tokens", "scored", "log10 p", "rank p", "epoch", "spans"],
            [
                [
                    row["id"],
                    str(row["n_tokens"]),
                    str(row["n_scored"]),
                    f"{row['log10_p']:.1f}",
                    "–" if row["rank_p"] is None else f"{row['rank_p']:.3g}",
                    row["epoch"] or "–",
                    " ".join(f"{start}-{end}" for start, end in row["spans"]),
                ]
                for row in rows
            ],
        )
    if len(rows) < read and rows:
        print(f"… and {read - len(rows)} more documents: --json or --out FILE.jsonl has them all")
    if (pooled := found.get("pooled")) and (read > 1 or not rows):
        print(f"all {read} as one corpus: {pooled['n_scored']} scored, log10 p {pooled['log10_p']:.1f}")
    best = min([*rows, *([pooled] if pooled else [])], key=lambda row: row["log10_p"], default=None)
    if best is not None:
        print(_finding(best, level))


def _finding(row: dict[str, Any], level: float) -> str:
    where = row.get("id") or "the corpus"
    if row["log10_p"] <= math.log10(level):
        return (
            f"{where}: marked. A text that does not depend on this key reaches such a score with probability at most"
            f" 10^{row['log10_p']:.1f}."
        )
    if not row["reachable"]:
        return (
            f"{where}: too short. No text with {row['n_scored']} scored tokens can reach {level:g}; it takes at least"
            f" {row['needs_scored']} scored tokens, in practice more."
        )
    return f"{where}: no signal at {level:g}. That is inconclusive: it does not show that the text is unmarked."
