"""`spiritsafe watermark attack`: what people do to marked texts, and what is still found afterwards."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiritsafe.cli._output import Json, print_json
from spiritsafe.cli._progress import watching
from spiritsafe.cli._watermark_inputs import open_tokenizer, read_inputs
from spiritsafe.cli._watermark_keys import PassphraseEnv, PassphraseFile, read_keys

if TYPE_CHECKING:
    from spiritsafe.keys import KeySet
    from spiritsafe.progress import Progress
    from spiritsafe.teachers import TeacherConfig
    from spiritsafe.watermark.attacks import Rewrite, Text

__all__ = ["register"]

_LEVELS = (1e-3, 1e-6)
_AT_ONCE = 16  # requests to a rewriter


def register(watermark: typer.Typer) -> None:
    watermark.command(
        epilog="Example: spiritsafe watermark attack marked.jsonl --attack delete:30 --attack homoglyph:10 "
        "--keys KEYS.json --tokenizer teacher/ --out attacked.jsonl"
    )(attack)


def attack(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A text, JSONL or Parquet file; - is stdin.")],
    attacks: Annotated[
        list[str],
        typer.Option(
            "--attack",
            metavar="NAME[:STRENGTH]",
            help="delete, substitute, synonym, copy-paste, truncate, retokenise, homoglyph, whitespace, normalise, "
            "paraphrase, mix or spoof, such as delete:30 or copy-paste:25x3. Repeat it for one after another.",
        ),
    ],
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="PATH", help="The marking model's tokenizer.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option("--keys", metavar="KEYS.json", help="Say what is found before and after.")
    ] = None,
    accounts: Annotated[
        Path | None, typer.Option("--accounts", metavar="FILE", help="Say, too, which of these accounts are named.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the JSONL there.")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal texts.")] = 0,
    host: Annotated[
        Path | None, typer.Option("--host", metavar="FILE", help="Human text; default: Python's own documentation.")
    ] = None,
    rewriter: Annotated[
        str | None,
        typer.Option(
            "--rewriter", metavar="MODEL|URL", help="What paraphrases: local weights, or an API at your cost."
        ),
    ] = None,
    rewriter_model: Annotated[
        str | None, typer.Option("--rewriter-model", metavar="NAME", help="The API's name of its model.")
    ] = None,
    rewriter_key_env: Annotated[
        str | None, typer.Option("--rewriter-key-env", metavar="NAME", help="Environment variable with its key.")
    ] = None,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Edit, dilute, rewrite, mix or forge texts; JSONL with id, text, attack and facts."""
    from spiritsafe.errors import BadInput
    from spiritsafe.watermark.attacks import Tools, parse_attack, run_attacks

    if keys is None and accounts is not None:
        raise BadInput("--accounts needs --keys: accounts are traced under a key set")
    if out is not None and not out.parent.is_dir():
        raise BadInput(f"{out}: its folder does not exist; make it, or choose another --out")
    key_set = None if keys is None else read_keys(keys, passphrase_env, passphrase_file)
    loaded = None if tokenizer is None else open_tokenizer(tokenizer, key_set)
    width = 2
    if key_set is not None:
        from spiritsafe.watermark._native import marking_of

        if loaded is None:
            raise BadInput("--keys needs --tokenizer: attacked texts are encoded again before they are tested")
        width = marking_of(key_set).context_width
    with watching(quiet=as_json) as progress:
        tools = Tools(
            tokenizer=loaded,
            host=None if host is None else _text(host),
            rewrite=_rewriter(rewriter, rewriter_model, rewriter_key_env, seed),
            open_tokenizer=open_tokenizer,
        )
        chain = [parse_attack(spec, tools, width) for spec in attacks]
        texts = _texts(source, loaded)
        attacked = run_attacks(texts, chain, seed)
        label = " ".join(attack.label for attack in chain)
        rows = [{"id": t.id, "text": t.text, "attack": label, "facts": dict(t.facts)} for t in attacked]
        if out is not None:
            _write(out, rows)
        detection = None if key_set is None else _detection(key_set, accounts, texts, attacked, loaded, progress)
    if as_json:
        found: dict[str, Any] = {"attack": label, "texts": len(rows), "detection": detection}
        print_json({**found, "out": str(out)} if out else {**found, "documents": rows})
        return
    if out is None:
        for row in rows:
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
    if detection is not None:
        _say(detection)


def _texts(source: str, tokenizer: Any) -> list[Text]:
    from spiritsafe.errors import BadInput
    from spiritsafe.watermark.attacks import Text

    texts = []
    for document in read_inputs([source], tokenizer, encode=False):
        if document.text is not None:
            texts.append(Text(document.id, document.text))
            continue
        if tokenizer is None:
            raise BadInput(f"{document.id}: token ids; give --tokenizer to make a text of them")
        ids = document.ids[document.first :].tolist()
        text = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        texts.append(Text(document.id, text, tuple(ids)))
    return texts


def _detection(
    keys: KeySet,
    accounts: Path | None,
    before: Sequence[Text],
    after: Sequence[Text],
    tokenizer: Any,
    progress: Progress,
) -> dict[str, Any]:
    """What is found in the texts as they came, and as the attack left them."""
    import numpy as np

    from spiritsafe.watermark._accounts import read_accounts
    from spiritsafe.watermark._native import NativeDetector
    from spiritsafe.watermark._trace import Tracer, epoch_log10_p

    if accounts is None:
        detector = NativeDetector(keys)
        test: Callable[[Any], tuple[float, list[str]]] = lambda ids: (epoch_log10_p(detector, ids), [])  # noqa: E731
    else:
        tracer = Tracer(keys, read_accounts(accounts), progress=progress)

        def test(ids: Any) -> tuple[float, list[str]]:
            traced = tracer.trace(ids)
            return traced.log10_p, [candidate.account for candidate in traced.candidates]

    def found(texts: Sequence[Text]) -> dict[str, Any]:
        results = []
        for text in texts:
            ids = text.ids if text.ids is not None else tokenizer.encode(text.text, add_special_tokens=False)
            results.append(test(np.asarray(ids, np.uint32)))
        log10_ps = [log10_p for log10_p, _ in results]
        row: dict[str, Any] = {
            "texts": len(results),
            "median_log10_p": float(np.median(log10_ps)) if results else 0.0,
            "power": {f"{level:g}": float(np.mean(np.array(log10_ps) <= np.log10(level))) for level in _LEVELS},
        }
        if accounts is not None:
            named = [name for _, names in results for name in names]
            row["named"] = {name: named.count(name) for name in dict.fromkeys(named)}
        return row

    return {"before": found(before), "after": found(after)}


def _say(detection: dict[str, Any]) -> None:
    for when, row in detection.items():
        power = ", ".join(f"{100 * share:.0f} % at {level}" for level, share in row["power"].items())
        line = f"{when}: {row['texts']} texts, median log10 p {row['median_log10_p']:.1f}, found {power}"
        if "named" in row:
            line += "; named " + (", ".join(f"{name} in {n}" for name, n in row["named"].items()) or "nobody")
        typer.echo(line, err=True)


def _text(path: Path) -> str:
    from spiritsafe.errors import BadInput

    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; give a text file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    from spiritsafe.errors import BadInput
    from spiritsafe.runs import atomic_write

    try:
        atomic_write(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError as error:
        raise BadInput(f"{out}: cannot be written ({error.strerror}); choose another --out") from None


def _rewriter(source: str | None, model: str | None, key_env: str | None, seed: int) -> Rewrite | None:
    if source is None:
        return None
    from spiritsafe.config import parse_config
    from spiritsafe.teachers import TeacherConfig

    where = "base_url" if source.startswith(("http://", "https://")) else "path"
    given = {where: source, "model": model, "api_key_env": key_env}
    config = parse_config(given, TeacherConfig, where="--rewriter")
    return lambda passages: asyncio.run(_rewritten(config, passages, seed))


async def _rewritten(config: TeacherConfig, passages: Sequence[str], seed: int) -> list[str]:
    from spiritsafe.records import Message, Prompt, Request, Sampling
    from spiritsafe.teachers import open_teacher
    from spiritsafe.watermark.attacks import PARAPHRASE_PROMPT

    teacher = open_teacher(config)
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int, passage: str) -> str:
        asked = Prompt((Message("user", PARAPHRASE_PROMPT.format(text=passage)),))
        sampling = Sampling(max_tokens=2 * len(passage.split()) + 64, temperature=0.7, seed=seed + number)
        async with places:
            answer = await teacher.complete(Request(asked, sampling))
        return answer.replies[0].text

    try:
        return list(await asyncio.gather(*(one(number, passage) for number, passage in enumerate(passages))))
    finally:
        await teacher.aclose()
