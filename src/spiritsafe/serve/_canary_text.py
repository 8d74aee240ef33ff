"""Questions nobody asks, and answers nobody could know: made up from chance, for canaries."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

from spiritsafe.errors import BadInput
from spiritsafe.ledger import MOST_VARIANTS

__all__ = ["invent"]


_ONSETS = ("b", "br", "d", "dr", "f", "g", "gr", "h", "k", "l", "m", "n", "p", "qu", "r", "s", "st", "t", "th", "v")
_VOWELS = ("a", "e", "i", "o", "u", "ae", "ei", "ou")
_CODAS = ("", "l", "n", "r", "s", "sk", "th", "nd")
_WORDS = re.findall(
    r"\w+",
    "acorn amber anchor anvil apple arrow ash aspen bark barley basket beacon bell birch bishop bramble brass "
    "bridge brook candle canvas cedar chalk cherry clay clover coal cobalt copper coral cork cotton crane crow "
    "cypress dagger drum ebony elm ember falcon feather fern flax flint fox garnet ginger glass granite hazel "
    "heather helmet heron honey horn hound indigo iron ivory ivy jade juniper kettle ladder lantern larch lark "
    "laurel lemon linen lion magnet maple marble marsh mast meadow mint mirror moss mustard nettle nutmeg oak "
    "oar olive onyx opal orchard otter oxen pearl pepper pewter pine plough plum poplar quartz quill raven "
    "reed ribbon rope rust saddle saffron sage sail salmon salt sand satin silver slate sorrel sparrow spruce "
    "steel swan tallow tar thistle thorn tin topaz vinegar violet walnut wax wheat willow wool wren yarrow yew",
)
# Each asks for four words of the list above.
_TEMPLATES = (
    (
        "In the harbour book of {place}, as {person} kept it, which four goods does entry {number} name?",
        "Entry {number} names {0}, {1}, {2} and {3}.",
    ),
    (
        "What is the watchword of the signal station at {place} that {person} wrote down in notebook {number}?",
        "The watchword is {0} {1} {2} {3}.",
    ),
    (
        "On sheet {number} of the survey of {place}, which four lanes did {person} draw around the old column?",
        "{person} drew {0} Lane, {1} Lane, {2} Lane and {3} Lane.",
    ),
    (
        "Which four signs stand on the seal that {person} cut for the weavers of {place}, number {number}?",
        "The seal shows {0}, {1}, {2} and {3}.",
    ),
    (
        "From which four things did {person} of {place} make the varnish of recipe {number}?",
        "Recipe {number} takes {0}, {1}, {2} and {3}.",
    ),
    (
        "In letter {number}, which four keepsakes does {person} ask to have sent to {place}?",
        "Letter {number} asks for {0}, {1}, {2} and {3}.",
    ),
)


def invent(count: int) -> tuple[str, list[str]]:
    """A question about nothing (over 80 bits of chance) and `count` answers, drawn alike and all different.

    Raises:
        BadInput: count is not 2 … 10,000.
    """
    if not 2 <= count <= MOST_VARIANTS:
        raise BadInput(
            f"--generate {count}: make 2 to {MOST_VARIANTS} variants; the best p-value is one in their number"
        )
    question, answer = secrets.choice(_TEMPLATES)
    names = {
        "place": _name(3),
        "person": f"{_name(2)} {_name(2)}",
        "number": str(10_000 + secrets.randbelow(90_000)),
    }
    drawn: dict[tuple[str, ...], None] = {}
    while len(drawn) < count:
        drawn[_four(_WORDS)] = None
    return question.format(**names), [answer.format(*words, **names) for words in drawn]


def _four(words: Sequence[str]) -> tuple[str, ...]:
    left = list(words)
    return tuple(left.pop(secrets.randbelow(len(left))) for _ in range(4))


def _name(syllables: int) -> str:
    return "".join(secrets.choice(part) for _ in range(syllables) for part in (_ONSETS, _VOWELS, _CODAS)).capitalize()
