"""`spiritsafe watermark detect`: does a text, or a corpus, carry the marks of a key?"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiritsafe.cli._output import Json, print_json
from spiritsafe.cli._progress import watching
from spiritsafe.cli._watermark_findings import Findings, described, row_file
from spiritsafe.cli._watermark_inputs import open_tokenizer, read_inputs, tokenizer_mismatch
from spiritsafe.cli._watermark_keys import PassphraseEnv, PassphraseFile, read_keys
from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    from spiritsafe.keys import KeySet
    from spiritsafe.watermark._documents import Documents
    from spiritsafe.watermark._types import Detector, Law

__all__ = ["register"]

_AGREEMENT = 0.8  # of pairs of ids that come back when a row's text is encoded again: fewer are another tokenizer's


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
    if pool and (entropy_model or out):
        which = "--entropy-model weighs" if entropy_model else "--out writes"
        raise BadInput(f"{which} single documents, --pool tests none of them; leave out one of the two")
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
        law=_law(detector) if entropy_model else None,
        pool=entropy_model is None,
    )
    weigh = _weights(entropy_model) if entropy_model else None
    findings = Findings(level, all_rows=as_json and out is None and not pool)
    documents = read_inputs(inputs, loaded, vocab_size=vocab)
    with watching() as progress, row_file(out) as write:
        tested = ((d, None) for d in corpus.gather(documents)) if pool else corpus.stream(documents, weigh)
        for document, row in tested:
            findings.count(len(document.ids) - document.first)
            if row is not None:
                fields = described(document.id, row)
                findings.add(fields)
                if write:
                    write(fields)
            progress.update("documents", findings.read, None, f"{findings.tokens} tokens")
        pooled = None if entropy_model else described(None, corpus.pooled(progress))
    warnings = [] if loaded is None else _warnings(str(tokenizer), loaded, key_set, documents)
    if not as_json:
        findings.say(pooled)
        return
    found: dict[str, Any] = {"scheme": detector.scheme, "documents": findings.rows}
    if pooled is not None:
        found["pooled"] = pooled
    if not pool:
        found["summary"] = {"documents": findings.read, "level": level, "marked": findings.marked()}
    print_json(found | {"warnings": warnings})


def _warnings(source: str, tokenizer: Any, keys: KeySet | None, documents: Documents) -> list[str]:
    """What speaks against this tokenizer: the key set's hash, and rows whose text does not become their tokens."""
    said = tokenizer_mismatch(source, tokenizer, keys) if keys is not None else None
    warnings = [said] if said else []
    if (pairs := documents.compared_pairs) and documents.agreeing_pairs < _AGREEMENT * pairs:
        warnings.append(
            f"{source}: of {pairs} pairs of tokens in rows that have both text and tokens, it makes"
            f" {documents.agreeing_pairs} when it encodes the text; it is another tokenizer than made the tokens"
        )
        print(f"warning: {warnings[-1]}", file=sys.stderr)
    return warnings


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


def _law(detector: Detector) -> Law:
    from spiritsafe.watermark._native import NativeDetector

    law = detector.marks.law if isinstance(detector, NativeDetector) else None
    if law is None:
        raise BadInput(
            f"--entropy-model: weights are for gumbel-dual and kgw marks of a key set, not for {detector.scheme}"
        )
    return law


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
