"""Does a training set carry marks that somebody could recognise? For the one who trains, and for whoever asks later.

Null hypothesis, one for each key set or engine: the replies do not depend on its key.  Access: the keys, or an engine's
parameters, and the training set.  Cost: encoding; then tens of nanoseconds a token.  What it cannot show: that no marks
of other keys are there, or that a marked reply came from where its key was kept.

The p-value is exact, over the whole set with every repeated passage counted once (`watermark.Corpus`), corrected for
the epochs of a key set and for how many were screened for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritsafe import pvalue
from spiritsafe.errors import BadInput
from spiritsafe.exchanges import open_exchanges
from spiritsafe.progress import Progress, Silent
from spiritsafe.tokens import tokenizer_hash

if TYPE_CHECKING:
    from spiritsafe.watermark import Detector, Document

__all__ = ["Screen", "screen"]

_COLUMNS = ["id", "split", "completion", "token_ids", "tokenizer_hash"]


@dataclass(frozen=True, slots=True, eq=False)
class Screen:
    """What to look for. name: how the attestation calls it; never the key.

    tokenizer: the marking model's, for replies that have no token ids, or those of another tokenizer.
    """

    name: str
    detector: Detector
    tokenizer: Any = None


def screen(curated: Path, screens: Sequence[Screen], progress: Progress | None = None) -> list[dict[str, Any]]:
    """{"for", "scheme", "epochs", "epoch", "tokens", "scored", "log10_p"} for each, of the rows that are trained on.

    Raises:
        BadInput: no exchanges file, or a row has neither the marking model's token ids nor a tokenizer to make them.
    """
    from spiritsafe.watermark import Corpus

    found = []
    for done, one in enumerate(screens):
        (progress or Silent()).update("screen", done, len(screens), one.name)
        corpus = Corpus(one.detector, spans=False)
        for _ in corpus.gather(_documents(curated, one)):
            pass
        row = corpus.pooled()
        found.append(
            {
                "for": one.name,
                "scheme": one.detector.scheme,
                "epochs": row.epochs_tried,
                "epoch": row.epoch,
                "tokens": row.n_tokens,
                "scored": row.n_scored,
                "log10_p": round(pvalue.bonferroni(row.log10_p, len(screens)), 4),
            }
        )
    return found


def _documents(curated: Path, one: Screen) -> Iterator[Document]:
    import numpy as np

    from spiritsafe.watermark import Document

    ours = None if one.tokenizer is None else tokenizer_hash(one.tokenizer)
    with open_exchanges(curated) as file:
        for batch in file.iter_batches(batch_size=256, columns=_COLUMNS):
            for row in batch.to_pylist():
                if row["split"] != "train":
                    continue
                ids = row["token_ids"]
                if ids is None or (ours is not None and ours != row["tokenizer_hash"]):
                    if one.tokenizer is None:
                        raise BadInput(
                            f"{curated}: row {row['id']} has no token ids; give the tokenizer of the model that "
                            f"{one.name} marks, with --tokenizer"
                        )
                    text = "\n".join(message["content"] for message in row["completion"])
                    ids = one.tokenizer.encode(text, add_special_tokens=False)
                yield Document(row["id"], np.asarray(ids, np.uint32), 0)
