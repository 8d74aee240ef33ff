"""Does a training set carry marks that somebody could recognise? For the one who trains, and for whoever asks later.

Null hypothesis, one for each key set or engine: the replies do not depend on its key.  Access: the keys, or an engine's
parameters, and the training set.  Cost: encoding; then tens of nanoseconds a token.  What it cannot show: that no marks
of other keys are there, or that a marked reply came from where its key was kept.

The p-value is exact, over the whole set with every repeated passage counted once (`watermark.Corpus`), corrected for
the epochs of a key set and for how many were screened for.
"""

from __future__ import annotations

import itertools
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
    """What to look for. name: how the attestation calls it; never the key."""

    name: str
    detector: Detector


def screen(
    curated: Path, screens: Sequence[Screen], tokenizer: Any = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """{"for", "scheme", "epochs", "epoch", "tokens", "scored", "log10_p"} for each, of the rows that are trained on.

    tokenizer: that of the models that mark, for rows without token ids or with those of another tokenizer.

    Raises:
        BadInput: no exchanges file, or a row without token ids and no tokenizer to make them.
    """
    from spiritsafe.watermark import Corpus

    corpora = [Corpus(one.detector, spans=False) for one in screens]
    documents = itertools.tee(_documents(curated, tokenizer, progress or Silent()), len(corpora))
    for _ in zip(*(corpus.gather(some) for corpus, some in zip(corpora, documents, strict=True)), strict=True):
        pass
    found = []
    for one, corpus in zip(screens, corpora, strict=True):
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


def _documents(curated: Path, tokenizer: Any, progress: Progress) -> Iterator[Document]:
    import numpy as np

    from spiritsafe.watermark import Document

    ours = None if tokenizer is None else tokenizer_hash(tokenizer)
    done = 0
    with open_exchanges(curated) as file:
        for batch in file.iter_batches(batch_size=256, columns=_COLUMNS):
            for row in batch.to_pylist():
                if row["split"] != "train":
                    continue
                ids = row["token_ids"]
                if ids is None or (ours is not None and ours != row["tokenizer_hash"]):
                    if tokenizer is None:
                        raise BadInput(
                            f"{curated}: row {row['id']} has no token ids; give the tokenizer of the models that mark, "
                            "with --tokenizer"
                        )
                    text = "\n".join(message["content"] for message in row["completion"])
                    ids = tokenizer.encode(text, add_special_tokens=False)
                yield Document(row["id"], np.asarray(ids, np.uint32), 0)
            done += batch.num_rows
            progress.update("screen", done, file.metadata.num_rows)
