"""Key stealing: learn which tokens a mark favours from marked texts alone, and forge new texts that carry it.

The forger knows the scheme and its context width, not the key. For a context w of k tokens the marked texts' next
tokens are compared with an unmarked corpus: s(x | w) = min(p_marked / p_base, c) / c where that ratio is at least 1,
else 0 (Jovanović, Staab and Vechev, "Watermark stealing in large language models", 2024, eq. 3), p_base smoothed from
single tokens up to the whole context. Forged texts are walks over contexts that the marked texts contain; they draw the
next token in proportion to count × s, never use a (context, token) pair twice, and jump to another context after a
stretch without a choice, so that they do not recite one text.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from random import Random
from statistics import median

from spiritsafe.errors import BadInput
from spiritsafe.watermark.attacks._host import stdlib_prose
from spiritsafe.watermark.attacks._types import Text, Tools, rng_for

__all__ = ["Spoof"]

_CLIP = 2.0
_FEWEST_TOKENS = 50
_STRETCH = 16  # tokens without a choice before a jump
Context = tuple[int, ...]


class Spoof:
    """Forges so many texts, each as long as the median marked one.

    facts: `stolen_pairs`, the share of tokens whose (context, token) pair stands in a marked text; `longest_copy`, the
    longest run of tokens copied from one marked text, as a share of the forged one.
    """

    def __init__(self, label: str, count: int, context_width: int, tools: Tools) -> None:
        self.label, self.count, self.width = label, count, context_width
        self.tokenizer = tools.need_tokenizer(label)
        self.host = tools.host if tools.host is not None else stdlib_prose()

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        """Forged texts from marked ones.

        Raises:
            BadInput: the marked texts have fewer than 50 tokens together.
        """
        marked = [list(text.ids) if text.ids is not None else self._encode(text.text) for text in texts]
        if sum(map(len, marked)) < _FEWEST_TOKENS:
            raise BadInput(f"--attack {self.label}: nothing to learn from {sum(map(len, marked))} marked tokens")
        favoured = _favoured(marked, self._encode(self.host), self.width)
        stolen = {pair for ids in marked for pair in _pairs(ids, self.width)}
        runs = _Runs(marked)
        length = max(int(median(map(len, marked))), self.width + 2)
        return [self._forge(i, length, favoured, stolen, runs, seed) for i in range(self.count)]

    def _forge(
        self,
        number: int,
        length: int,
        favoured: dict[Context, dict[int, float]],
        stolen: set[tuple[Context, int]],
        runs: _Runs,
        seed: int,
    ) -> Text:
        name = f"forged-{number + 1}"
        ids = _walk(favoured, self.width, length, rng_for(seed, self.label, name))
        pairs = list(_pairs(ids, self.width))
        facts = {
            "stolen_pairs": sum(pair in stolen for pair in pairs) / max(len(pairs), 1),
            "longest_copy": runs.longest(ids) / len(ids),
        }
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return Text(name, text, None, facts)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _pairs(ids: Sequence[int], width: int) -> Iterable[tuple[Context, int]]:
    return ((tuple(ids[t - width : t]), ids[t]) for t in range(width, len(ids)))


def _counts(texts: Iterable[Sequence[int]], width: int) -> dict[Context, Counter[int]]:
    found: dict[Context, Counter[int]] = defaultdict(Counter)
    for ids in texts:
        for context, token in _pairs(ids, width):
            found[context][token] += 1
    return found


def _favoured(marked: Sequence[Sequence[int]], base: Sequence[int], width: int) -> dict[Context, dict[int, float]]:
    """count × s(x | w) for every pair of the marked texts; all tokens' counts where s is 0 for each of them."""
    seen = _counts(marked, width)
    levels = [_counts([base], k) for k in range(width, -1, -1)]
    vocab = len({x for ids in (*marked, base) for x in ids})
    totals = [{context: counter.total() for context, counter in level.items()} for level in levels]

    def p_base(context: Context, token: int) -> float:
        p = 1.0 / vocab
        for k in range(width + 1):  # from single tokens up to the whole context, each smoothing the next
            level, total = levels[width - k], totals[width - k]
            short = context[width - k :]
            if short in level:
                p = (level[short][token] + p * 10) / (total[short] + 10)
        return p

    out = {}
    for context, counter in seen.items():
        n = counter.total()
        lift = {x: min(count / n / p_base(context, x), _CLIP) / _CLIP for x, count in counter.items()}
        weights = {x: counter[x] * s for x, s in lift.items() if s * _CLIP >= 1}
        out[context] = weights or {x: float(count) for x, count in counter.items()}
    return out


def _walk(favoured: dict[Context, dict[int, float]], width: int, length: int, random: Random) -> list[int]:
    contexts = list(favoured)
    by_start: dict[Context, list[Context]] = defaultdict(list)
    for context in contexts:
        by_start[context[:-1]].append(context)
    ids = list(random.choice(contexts))
    used: set[tuple[Context, int]] = set()
    forced = 0
    while len(ids) < length:
        context = tuple(ids[-width:])
        options = {x: s for x, s in favoured.get(context, {}).items() if (context, x) not in used}
        forced = forced + 1 if len(options) < 2 else 0
        if options and forced <= _STRETCH:
            token = random.choices(list(options), list(options.values()))[0]
            used.add((context, token))
            ids.append(token)
            continue
        forced = 0
        if near := by_start.get(context[1:]):  # one token that nobody favours leads to a context that is known
            ids.append(random.choice(near)[-1])
        else:
            ids += random.choice(contexts)
    return ids[:length]


class _Runs:
    """Finds how long a stretch of ids stands in one of the texts."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.texts = texts
        self.where: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for d, ids in enumerate(texts):
            for t, token in enumerate(ids):
                self.where[token].append((d, t))

    def longest(self, ids: Sequence[int]) -> int:
        best = 0
        before: dict[tuple[int, int], int] = {}
        for token in ids:
            now = {(d, t): before.get((d, t - 1), 0) + 1 for d, t in self.where.get(token, ())}
            best = max(best, max(now.values(), default=0))
            before = now
        return best
