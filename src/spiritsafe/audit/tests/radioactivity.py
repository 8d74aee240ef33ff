"""Radioactivity: does the suspect carry on the teacher's mark?

Null hypothesis. The suspect does not depend on the key. It may be the teacher's own unmarked model, or have been
trained on the same teacher's texts under other keys: whatever it says after a context is then fixed by things that the
key's coins of that context had no part in, and those coins are fair.

Reading.     The suspect reads the teacher's marked texts; scored is (w, v): the k tokens w before a position, and v,
             what it finds likeliest there, not what stands there. The texts were made with the key, so a pair counts
             only where w is new to its prompt, and no text has w at an earlier place of its reply: then nothing that
             used the coins of w had a part in any of it. "w is new in its sequence and (w, v) new in all", as
             published, is not enough: design/audit-radioactivity.md has a counterexample, and the proof.
Completions. The suspect answers the texts' prompts; scored are its own tokens x, where the context w is not in the
             prompt, (w, x) is new, and, if supervised, w occurs in the marked texts.
p.           How many pairs there are depends on the marked texts, hence on the key: 1/E of a martingale that may stop
             anywhere (`pvalue.tilted_evalue`). Unsupervised completions do not look at the marked texts: the scheme's
             exact tail, or its proven bound. Beside it the tail at this number of pairs, and the rank among decoy keys.
Keys.        One hypothesis an opened epoch key, Holm over all that were committed to. Accounts' keys are hypotheses of
             their own, on the contexts that the coin gives to accounts, Holm over all committed slots.
Access.      Reading needs weights and the teacher's tokenizer; completions need replies only.
Cost.        Reading: a forward pass over the texts. Completions: one reply a prompt.
Limits.      Texts have to be as they were drawn, and chosen without the key: whoever has it could choose texts that an
             innocent model agrees with. Controls show it. Replies in a conversation
             after the first are left out, for their prompts hold marked text. Texts without token ids are tokenised
             again, which is nearly always what was drawn, not always. Engines whose coins are shared between contexts
             (hf-synthid, hf-kgw's selfhash) can only be tested by unsupervised completions. No mark clears nobody:
             paraphrase before training removes it.
Source.      Sander et al., "Watermarking makes language models radioactive" (2024), §4; here with another rule of what
             counts, other p-values, and decoys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import RadioactivityConfig
from spiritsafe.audit._types import Access, Class, Hypothesis, Item, Outcome, Record, Suspect
from spiritsafe.audit.tests._bounds import bytes_of
from spiritsafe.audit.tests._marked_texts import Text, read_texts
from spiritsafe.audit.tests._radioactive_answers import Answers, read_answers
from spiritsafe.audit.tests._radioactive_keys import Tried, tried_keys
from spiritsafe.audit.tests._radioactive_reading import Candidates, completed, own_coins, predicted
from spiritsafe.audit.tests._radioactive_score import Scored, account_scores, epoch_score
from spiritsafe.errors import BadInput
from spiritsafe.pvalue import holm
from spiritsafe.records import Prompt, Sampling
from spiritsafe.teachers import load_tokenizer
from spiritsafe.tokens import tokenizer_hash

__all__ = ["Radioactivity"]


class Radioactivity:
    """See the banner."""

    kind: ClassVar[str] = "radioactivity"
    most: ClassVar[Class] = "proof"

    def __init__(self, config: RadioactivityConfig, evidence: Evidence) -> None:
        self._config, self._evidence = config, evidence
        self._texts = read_texts(evidence.input(config.texts), lambda: self._tokenizer, config.max_texts)
        self._tried = tried_keys(config, evidence, self.name)
        for one in self._tried:
            if not own_coins(one.detector) and (config.mode == "reading" or config.supervised):
                raise BadInput(
                    f"{self.name}: {one.name} has coins that several contexts share, so that nothing follows from "
                    "marked texts; use mode completions with supervised false"
                )

    @property
    def name(self) -> str:
        return self._config.name or self.kind

    @property
    def access(self) -> Access:
        return "weights" if self._config.mode == "reading" else "text"

    @property
    def null(self) -> str:
        if self._config.mode == "reading":
            says = "what it finds likeliest to come next in the teacher's marked texts"
        else:
            says = "what it writes"
        return (
            "The teacher's replies were marked with a secret key, committed to before. The suspect does not depend on "
            f"this key: {says} agrees with the key's mark no more often than chance has it."
        )

    # ── asking ──

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._evidence.input(self._config.tokenizer))

    def items(self) -> Sequence[Item]:
        return list(self._items.values())

    @cached_property
    def _items(self) -> dict[str, Item]:
        return {text.id: self._item(text) for text in self._texts.texts if self._askable(text)}

    def _askable(self, text: Text) -> bool:
        if self._config.mode == "completions":
            return bool(text.messages)
        # engines hash the reply from its first token on, which nothing predicts without a prompt
        return bool(text.ids) if text.prompt else self._config.engine is None and len(text.ids) > 1

    def _item(self, text: Text) -> Item:
        if self._config.mode == "reading":
            # a text without a prompt is its own from the second token on: nothing predicts the first
            first = max(len(text.prompt), 1)
            return Item(text.id, {"ids": [*text.prompt, *text.ids], "first": first})
        asked: dict[str, Any] = {
            "messages": [{"role": m.role, "content": m.content} for m in text.messages],
            "prompt_ids": list(text.prompt),
        }
        if self._config.supervised:
            asked["marked_ids"] = list(text.ids)
        return Item(text.id, asked, bytes_of(Prompt(text.messages)), self._config.max_tokens)

    async def ask(self, suspect: Suspect, items: Sequence[Item]) -> list[Mapping[str, Any]]:
        if self._config.mode == "reading":
            self._same_tokenizer(suspect)
            said = await suspect.read([item.asked["ids"][:-1] for item in items])
            return [{"argmax": list(row[item.asked["first"] - 1 :])} for item, row in zip(items, said, strict=True)]
        sampling = Sampling(max_tokens=self._config.max_tokens, temperature=self._config.temperature)
        texts = {text.id: text for text in self._texts.texts}
        replies = await asyncio.gather(*(suspect.complete(Prompt(texts[item.id].messages), sampling) for item in items))
        written = [reply.text for (reply,) in replies]
        return [{"text": text, "ids": list(self._tokenizer.encode(text, add_special_tokens=False))} for text in written]

    def _same_tokenizer(self, suspect: Suspect) -> None:
        theirs = suspect.info.tokenizer_hash
        if theirs is not None and theirs != tokenizer_hash(self._tokenizer):
            raise BadInput(
                f"{self.name}: the suspect's tokenizer is not the teacher's, it cannot read the same tokens; use mode "
                "completions"
            )

    # ── judging ──

    def judge(self, records: Sequence[Record]) -> Outcome:
        answers = read_answers(records, self.name, self._items, reading=self._config.mode == "reading")
        found = self._scored(answers)
        epochs, accounts = ([one for one in found if one.tried.layer == layer] for layer in ("epoch", "account"))
        committed = self._evidence.commitment
        slots = len(accounts) if committed is None else committed.committed["account"]
        hypotheses = [*_hypotheses(epochs, self._evidence.family), *_hypotheses(accounts, slots)]
        best = min(epochs or accounts, key=lambda one: one.log10_p)
        first = hypotheses[: len(epochs) or len(accounts)]
        return Outcome(
            test=self.name,
            kind=self.kind,
            most="lead" if committed is None else self.most,
            log10_p=min(one.facts["log10_p_family"] for one in first),
            n_scored=best.n,
            family=self._evidence.family if epochs else slots,
            hypotheses=tuple(hypotheses),
            effect=best.effect,
            notes=self._notes(answers),
        )

    def _scored(self, answers: Answers) -> list[Scored]:
        """Every key, on what counts for it."""
        config, known = self._config, dict[Any, Candidates]()
        fixed = config.mode == "completions" and not config.supervised
        found: list[Scored] = []
        accounts: dict[tuple[str, str], list[Tried]] = {}
        for one in self._tried:
            detector: Any = one.detector
            # Spiritsafe's own schemes read alike
            how = detector.marking.context_width if hasattr(detector, "marking") else None
            if how not in known:
                known[how] = self._candidates(detector, answers)
            if one.layer == "account":
                accounts.setdefault((detector.trials[0], detector.scheme), []).append(one)
                continue
            reading = known[how].counted(detector, "epoch")
            found.append(epoch_score(one, reading, fixed, self._evidence.decoy_seed, config.decoys))
        for tried in accounts.values():
            native: Any = tried[0].detector
            reading = known[native.marking.context_width].counted(native, "account")
            found += account_scores(tried, reading, fixed)
        return found

    def _candidates(self, detector: Any, answers: Answers) -> Candidates:
        if self._config.mode == "reading":
            return predicted(detector, answers.wrote)
        return completed(detector, answers.wrote, answers.marked if self._config.supervised else None)

    def _notes(self, answers: Answers) -> tuple[str, ...]:
        notes, texts = [], self._texts
        if self._evidence.commitment is None:
            notes.append("No commitment was given: nothing shows that the key was fixed before the texts were written.")
        if texts.quoting:
            notes.append(f"{texts.quoting} texts answer a conversation that holds earlier replies; they are left out.")
        if texts.wordless:
            notes.append(f"{texts.wordless} released replies have no text; they are left out.")
        if again := sum(text.again for text in texts.texts):
            notes.append(f"{again} texts came without token ids and were tokenised again.")
        if unaskable := len(texts.texts) - len(self._items):
            notes.append(f"{unaskable} texts have nothing to ask about; they are left out.")
        if answers.failed:
            notes.append(f"{answers.failed} questions brought no answer; they are left out.")
        if unasked := len(self._items) - len(answers.wrote) - answers.failed:
            notes.append(f"{unasked} questions were not asked.")
        if not np.any([len(wrote.ids) for wrote in answers.wrote]):
            notes.append("Nothing was answered: there is nothing to score.")
        return tuple(notes)


def _hypotheses(found: Sequence[Scored], family: int) -> list[Hypothesis]:
    corrected = holm([one.log10_p for one in found], tests=max(family, len(found)))
    return [one.hypothesis(family, float(log10_p)) for one, log10_p in zip(found, corrected, strict=True)]
