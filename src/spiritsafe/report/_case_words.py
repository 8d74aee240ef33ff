"""What a case's numbers mean and do not mean, for readers who are no statisticians. No sentence gives odds of guilt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "GLOSSARY",
    "HEADLINES",
    "KINDS",
    "LIMITS",
    "PROOF_FOR",
    "TRIED_BEFORE",
    "accounts_words",
    "one_in",
    "plain_words",
    "rarity",
]

HEADLINES = {
    "proof": "The hypothesis that the model is independent of the secret is rejected",
    "lead": "The hypothesis is rejected, but this is a lead and not proof",
    "inconclusive": "Inconclusive: the hypothesis was not rejected",
}

PROOF_FOR = (
    "It is proof only for those who have checked the case with the signer's key and the time-stamping authority's "
    "certificate, got from the signer and the authority themselves (see “How to check it”). For everybody else it is "
    "a lead."
)

TRIED_BEFORE = (
    "This plan replaces {plans}, under which audits were started {starts}. No number on this page is corrected for "
    "that: whoever tries several plans finds a rare result sooner. Ask what the earlier plans said, and what they "
    "found."
)

# what: the method.  fixed: in addition, where the secret was committed to; not_fixed: where it was not.
# unit: what is counted.  effect: what the size of what was seen means (by its name, or for all names).
KINDS: dict[str, dict[str, Any]] = {
    "radioactivity": {
        "title": "Marks in the teacher's replies",
        "what": (
            "The teacher's owner marked its replies with a secret key: among words that would all do, the key tips "
            "the choice, so little that no reader notices. A model trained on enough of these replies takes the habit "
            "over. The test counts how often the suspect's choices agree with the key. Whoever never met the key "
            "agrees with it by chance alone, and how often chance does that can be computed exactly."
        ),
        "fixed": "A fingerprint of the key was fixed before the replies were given: it was not chosen afterwards.",
        "not_fixed": "Nothing shows that the key was fixed before the replies. So this can be a lead at most.",
        "unit": "choices of a next word, or part of a word",
        "effect": {
            "mean score": "How well the suspect's choices agree with the secret key, on average; 1 is chance.",
            "share of green tokens": "The secret key calls a share of all choices green; the suspect's that are.",
            "share of tournament bits won": "The secret key gives every choice some zeros and ones; the share of ones.",
        },
        "limits": [
            "A mark shows that the model depends on marked text, not by which way the text reached it: third parties "
            "may have passed it on.",
            "Rewording the text before training, or training on other text afterwards, weakens or removes the mark.",
        ],
    },
    "twins": {
        "title": "Twin replies",
        "what": (
            "For some requests the teacher wrote two replies. A coin decided which one was released; the other was "
            "sealed. The test looks which of the two the suspect prefers: which one it finds likelier, or which one "
            "its own replies resemble more. A model that does not depend on the coins prefers the released one as "
            "often as a fair coin falls heads, whatever else it has learned."
        ),
        "fixed": "Fingerprints of both replies and of the coin's result were written to a ledger before the release.",
        "not_fixed": (
            "No ledger was given: nothing shows that replies and coins were fixed before the release. So this can be "
            "a lead at most."
        ),
        "unit": "pairs of replies",
        "effect": {
            "released preferred": "The share of pairs in which the suspect prefers the reply that was released."
        },
        "limits": [
            "The coins were flipped by the teacher's owner. That they were fair is tested by giving the same pairs to "
            "models known to be innocent (controls).",
        ],
    },
    "canaries": {
        "title": "Canaries",
        "what": (
            "The teacher answered some invented questions with one of many invented answers, drawn by lot. The test "
            "ranks all the answers by the suspect's preference. For a model that does not depend on the draw, every "
            "rank of the published answer is equally likely."
        ),
        "fixed": "Fingerprints of all answers and of the draw were written to a ledger before the publication.",
        "not_fixed": (
            "No ledger was given: nothing shows that answers and draws were fixed before the publication. So this can "
            "be a lead at most."
        ),
        "unit": "invented questions",
        "effect": {
            "median of rank / number of answers": (
                "Where the published answer stands among all of them: near 0, the suspect prefers it to nearly all "
                "others; near 1, it prefers nearly all others."
            ),
        },
        "limits": ["A canary shows that the model met what was published; anybody may have read and repeated it."],
    },
    "lineage": {
        "title": "Lineage of weights",
        "what": (
            "A model is a long list of numbers, its weights, arranged in units whose order is left to chance when the "
            "model is first made and is kept when it is trained further. The suspect's weights were compared with the "
            "teacher's: do its units stand in the same places, beyond what the model that both are declared to come "
            "from explains?"
        ),
        "unit": "units inside the model",
        "effect": (
            "The share of the suspect's units that resemble most the teacher's unit in the same place (1: all of them)."
        ),
        "limits": ["Likeness of weights says that one was made from the other or both from a third, not which."],
    },
    "equality": {
        "title": "Is it still the same model?",
        "what": (
            "Replies given earlier were compared with replies given now to the same questions, to see whether they "
            "can come from one model with the same settings."
        ),
        "unit": "replies",
        "effect": (
            "How many letters differ between a reply of now and one of earlier; the line: between two of earlier."
        ),
        "limits": ["A difference does not say what changed, or who changed it. It is no evidence of copying."],
    },
    "similarity": {
        "title": "Resemblance",
        "what": (
            "The suspect's replies were compared with the teacher's, and so were those of control models that are "
            "held to be innocent. What counts is only whether the suspect is nearer than all of them."
        ),
        "unit": "questions",
        "effect": (
            "How many short strings of letters two replies have in common (the measure is called chrF): 0 none, 1 all. "
            "The line is that of the control models."
        ),
        "limits": ["Models may resemble each other for many reasons. Resemblance is a lead and never proof."],
    },
}

LIMITS = [
    "It does not say how probable it is that the model was copied. No statistical test says that: it says how "
    "surprising the observation would be if the hypothesis were true.",
    "A hypothesis that is not rejected is not shown to be true. A model without a signal is not cleared.",
    "It weighs chance, and nothing else. However small a number here is, it says nothing about mistakes or fraud: a "
    "secret that leaked, files that were mixed up, answers that were made up.",
    "It does not say who did something, when, on whose orders, or whether it was allowed.",
    "It rests on the answers recorded in the transcript. That the model gave them is what the signer of this case "
    "testifies to; no computation can show it.",
]

GLOSSARY = [
    (
        "Teacher, suspect",
        "The teacher is the model whose replies may have been used. The suspect is the model under test; the word "
        "says that it was asked, and no more.",
    ),
    (
        "Hypothesis (null hypothesis)",
        "The statement that is put to the test. Here it says how things are if there is nothing to find. The test can "
        "reject it or fail to reject it; it cannot confirm it.",
    ),
    (
        "p (p-value)",
        "If the hypothesis is true, the probability of a result at least as strong as the one found. A small one means "
        "that hypothesis and observation fit badly together. It is not the probability that the hypothesis is true. "
        "6.0 × 10⁻⁸ is 6 divided by 1 followed by 8 zeros.",
    ),
    ("Level", "How small p has to be for the hypothesis to be rejected; fixed in the plan before the first question."),
    (
        "Corrected",
        "Whoever tries many keys finds a small p sooner. So p is multiplied by the number of all that were fixed "
        "beforehand, used or not (the method of Holm).",
    ),
    ("Hash", "A fingerprint of a file: 64 digits. Whoever changes one letter of the file changes the fingerprint."),
    (
        "Committed to",
        "A fingerprint of the secret was fixed beforehand. It gives nothing away, and no other secret can be "
        "presented later. One fingerprint can stand for many secrets (a Merkle root); each can be opened by itself.",
    ),
    ("Ledger", "A list to which one can only add: each line has the fingerprint of the one before it."),
    ("Transcript", "Everything that was asked and answered in this audit, kept as a list of the same kind."),
    (
        "Timestamp, signature",
        "A timestamp is an outside authority's word that a file existed at a certain time. A signature is a seal that "
        "only the holder of a certain key can make.",
    ),
    ("Control", "A model that is held to be innocent and was asked the same. It should show nothing."),
    ("Epoch, account slot", "A period in which one key was in use; the number of a customer's own key."),
    (
        "Proof, lead",
        "Classes of findings. Proof: a secret fixed beforehand, an exact test, times vouched for from outside. Lead: "
        "everything else that rejects; a reason to look further.",
    ),
]


def one_in(log10_p: float) -> str:
    """A p-value as "1 in 17 million", rounded towards the more frequent."""
    inverse = -log10_p
    if inverse < 3:
        return f"1 in {math.floor(10**inverse + 1e-9):,}"
    if inverse < 6:
        unit = 10 ** (math.floor(inverse + 1e-12) - 1)
        return f"1 in {math.floor(10**inverse / unit + 1e-9) * unit:,}"
    for exponent, word in ((12, "million million"), (9, "thousand million"), (6, "million")):
        if exponent <= inverse < 15:
            return f"1 in {_floor2(10 ** (inverse - exponent))} {word}"
    return "1 in a thousand million million"  # rarer numbers say nothing more to anybody; p itself stands beside it


def rarity(log10_p: float) -> str:
    """How often such a result is seen where the hypothesis is true: "more than 1 in 2", "at most 1 in 17 million"."""
    return "more than 1 in 2" if log10_p > -0.3 else f"at most {one_in(log10_p)}"


def plain_words(finding: Mapping[str, Any], primary: Mapping[str, Any], alpha: float) -> str:
    """The finding once more, without symbols."""
    limit, seen = one_in(math.log10(alpha)), rarity(finding["log10_p"])
    if finding["class"] == "inconclusive" and primary["n_scored"] == 0:
        return (
            "The model was asked, but nothing came back that could be counted. This does not clear the model, and it "
            "does not accuse it."
        )
    if finding["class"] == "inconclusive":
        return (
            f"What was seen is not rare enough to speak against the hypothesis. Of audits in which the hypothesis is "
            f"true, {seen} show something as strong by chance. It was fixed beforehand that only {limit} or rarer "
            "would do to reject it. This does not clear the model, and it does not accuse it."
        )
    return (
        f"Of audits in which the hypothesis is true, {seen} show something as strong as this by chance. It was fixed "
        f"beforehand that {limit} or rarer would do to reject it. The result rests on {primary['n_scored']:,} "
        f"{KINDS[primary['kind']]['unit']}. That is not the probability that the hypothesis is true, or that it is "
        "false: it says how rarely such a result comes from chance, and not how probable it is that this one did."
    )


def accounts_words(accounts: Sequence[str], outcomes: Sequence[Mapping[str, Any]], alpha: float) -> str:
    """Whose replies they are; "" where no account is named."""
    tried = [h for one in outcomes for h in one["hypotheses"] if h["facts"].get("layer") == "account"]
    if not accounts:
        return ""
    over = max(h["facts"]["family"] for h in tried)
    return (
        f"Whose replies: {'; '.join(accounts)}. Each customer's replies were marked with a key of its own, too; "
        f"{over:,} such keys were fixed beforehand, and {len(tried):,} of them were tried. Were the suspect "
        f"independent of all of them, one would be named like this in at most {one_in(math.log10(alpha))} audits. It "
        "says whose replies the model depends on, and not who trained it."
    )


def _floor2(x: float) -> str:
    """Two digits, rounded down."""
    scale = 1 if x >= 10 else 10
    return f"{math.floor(x * scale + 1e-9) / scale:g}"
