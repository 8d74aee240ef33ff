"""What a case's numbers mean and do not mean, for readers who are no statisticians. No sentence gives odds of guilt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["EFFECTS", "GLOSSARY", "HEADLINES", "KINDS", "LIMITS", "one_in", "plain_words"]

HEADLINES = {
    "proof": "The hypothesis that the model is independent of the secret is rejected",
    "lead": "The hypothesis is rejected, but this is a lead and not proof",
    "inconclusive": "Inconclusive: the hypothesis was not rejected",
}

KINDS: dict[str, dict[str, Any]] = {
    "radioactivity": {
        "title": "Marks in the teacher's replies",
        "what": (
            "The teacher's owner marked its replies with a secret key: among words that would all do, the key tips "
            "the choice, so little that no reader notices. A model trained on enough of these replies takes the habit "
            "over. The test counts how often the suspect's choices agree with the key. Whoever never met the key "
            "agrees with it by chance alone, and how often chance does that is known exactly."
        ),
        "limits": [
            "A mark shows that the model learned from marked text, not by which way the text reached it: third "
            "parties may have passed it on.",
            "Rewording the text before training, or training on other text afterwards, weakens or removes the mark.",
        ],
    },
    "twins": {
        "title": "Twin replies",
        "what": (
            "For some requests the teacher wrote two replies. A coin decided which one was released; the other was "
            "sealed. Both, and the coin's result, were committed to in a ledger before the release. The test looks "
            "which of the two the suspect prefers. A model that does not depend on the coins prefers the released "
            "one as often as a fair coin falls heads, whatever else it has learned."
        ),
        "limits": [
            "The coins were flipped by the teacher's owner. That they were fair is tested by giving the same pairs to "
            "models known to be innocent (controls).",
        ],
    },
    "canaries": {
        "title": "Canaries",
        "what": (
            "The teacher answered some invented questions with one of many invented answers, drawn by lot and "
            "committed to beforehand. The test ranks all the answers by the suspect's preference. For a model that "
            "does not depend on the draw, every rank of the published answer is equally likely."
        ),
        "limits": [
            "A canary shows that the model met what was published; anybody may have read and repeated it.",
        ],
    },
    "lineage": {
        "title": "Lineage of weights",
        "what": (
            "The numbers inside the suspect were compared with those inside the teacher, beyond what the base model "
            "that it is declared to come from explains."
        ),
        "limits": ["Likeness of weights says that one was made from the other or both from a third, not which."],
    },
    "equality": {
        "title": "Is it still the same model?",
        "what": (
            "Replies given earlier were compared with replies given now to the same questions, to see whether they "
            "can come from one model with the same settings."
        ),
        "limits": ["A difference does not say what changed, or who changed it. It is no evidence of copying."],
    },
    "similarity": {
        "title": "Resemblance",
        "what": (
            "The suspect's replies were compared with the teacher's, and so were those of control models that are "
            "held to be innocent. What counts is only whether the suspect is nearer than all of them."
        ),
        "limits": ["Models may resemble each other for many reasons. Resemblance is a lead and never proof."],
    },
}

EFFECTS = {
    "mean score": "How well the suspect's choices agree with the secret key, on average; 1 is what chance gives.",
    "share of green tokens": "The secret key calls a share of all choices green; the suspect's choices that are.",
    "share of tournament bits won": "The secret key gives every choice some bits; the share of ones among them.",
    "released preferred": "The share of pairs in which the suspect prefers the reply that was released.",
    "median of rank / number of answers": (
        "Where the published answer stands among all of them: near 0, the suspect prefers it to nearly all others."
    ),
}

LIMITS = [
    "It does not say how probable it is that the model was copied. No statistical test says that: it says how "
    "surprising the observation would be if the hypothesis were true.",
    "A hypothesis that is not rejected is not shown to be true. A model without a signal is not cleared.",
    "It does not say who did something, when, on whose orders, or whether it was allowed.",
    "It rests on the answers recorded in the transcript. That the model gave them is what the signer of this case "
    "testifies to; no computation can show it.",
]

GLOSSARY = [
    (
        "Hypothesis (null hypothesis)",
        "The statement that is put to the test. Here it always says: there is no connection. The test can reject it or "
        "fail to reject it; it cannot confirm it.",
    ),
    (
        "p-value",
        "If the hypothesis is true, the probability of a result at least as strong as the one found. A small one means "
        "that hypothesis and observation fit badly together. It is not the probability that the hypothesis is true.",
    ),
    ("Level", "How small p has to be for the hypothesis to be rejected; fixed in the plan before the first question."),
    (
        "Corrected",
        "Whoever tries many keys finds a small p sooner. So p is multiplied by the number of keys that were committed "
        "to, used or not.",
    ),
    (
        "Committed to",
        "A fingerprint (hash) of the secret was published beforehand. It gives nothing away, and no other secret can "
        "be presented later.",
    ),
    ("95 % interval", "A range made in such a way that it contains the true value in about 95 of 100 such studies."),
    ("Control", "A model that is held to be innocent and was asked the same. It should show nothing."),
    ("Hash", "A fingerprint of a file. Whoever changes one letter of the file changes the fingerprint."),
    (
        "Proof, lead",
        "Classes of findings. Proof: a secret fixed beforehand, an exact test, times vouched for from outside. Lead: "
        "everything else that rejects; a reason to look further.",
    ),
]


def one_in(log10_p: float) -> str:
    """A p-value as "1 in 17 million", rounded towards the more frequent."""
    if log10_p > -0.3:
        return "more often than 1 in 2"
    inverse = -log10_p
    if inverse < 3:
        return f"1 in {math.floor(10**inverse + 1e-9):,}"
    for exponent, word in ((12, "million million"), (9, "thousand million"), (6, "million"), (3, "thousand")):
        if exponent <= inverse < 15:
            return f"1 in {_floor2(10 ** (inverse - exponent))} {word}"
    return f"1 in a number of {math.floor(inverse) + 1} digits"


def plain_words(finding: Mapping[str, Any], primary: Mapping[str, Any], alpha: float) -> str:
    """The finding once more, without symbols."""
    limit, seen = one_in(math.log10(alpha)), one_in(finding["log10_p"])
    if finding["class"] == "inconclusive":
        return (
            f"What was seen does not speak against the hypothesis clearly enough: chance alone may bring something as "
            f"strong ({seen}). It was fixed beforehand that it would have to be {limit} or rarer. This does not clear "
            "the model, and it does not accuse it."
        )
    return (
        f"If the model had no connection with the secret, something as strong as this would be seen by chance at most "
        f"{seen}. It was fixed beforehand that {limit} or rarer would do to reject the hypothesis. The result rests on "
        f"{primary['n_scored']:,} observations that could each have gone either way. It is not the probability that "
        "the model was, or was not, trained on the material."
    )


def _floor2(x: float) -> str:
    """Two digits, rounded down."""
    scale = 1 if x >= 10 else 10
    return f"{math.floor(x * scale + 1e-9) / scale:g}"
