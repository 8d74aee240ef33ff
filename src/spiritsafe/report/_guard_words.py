"""What a guard's figures mean, in plain words, and what they cannot show."""

from __future__ import annotations

from spiritsafe.report._format import count, percent
from spiritsafe.report._guard_books import Books
from spiritsafe.report._guard_figures import DAYS, GuardFigures
from spiritsafe.report._words import Verdict
from spiritsafe.serve._config import GuardConfig

__all__ = ["guard_limits", "guard_verdict", "what_was_checked"]


def guard_verdict(figures: GuardFigures) -> Verdict:
    """Are the books in order? One headline and one sentence."""
    books = figures.books
    if not books.rows and books.whole and books.totals != "differ":
        return Verdict("none", "No entries yet", "The ledger is empty: this guard has answered nothing so far.")
    if not books.whole:
        problems = "a problem" if books.problem_count == 1 else f"{count(books.problem_count)} problems"
        sentence = (
            f"{problems[0].upper()}{problems[1:]} in the {count(books.rows)} rows read. Treat every figure below with "
            "suspicion until spiritsafe ledger verify has told what happened."
        )
        return Verdict("poor", "The ledger is not whole", sentence)
    rows = f"All {count(books.rows)} rows" if books.from_start else f"The newest {count(books.rows)} rows"
    chain = f"{rows} of the ledger follow one another unbroken, each with the hash of its content"
    if books.rows == 1:
        chain = "The one row read has the hash of its content and follows the row before it"
    ledger = "The ledger is whole" if books.from_start else "The newest part of the ledger is whole"
    if books.totals == "differ":
        sentence = f"{chain}, but the running totals, which limits and bills rest on, are not the sums of the rows."
        return Verdict("poor", "The money does not add up", sentence)
    if books.totals == "absent":
        sentence = f"{chain}. The running totals were not compared: no whole day is among these rows."
        return Verdict("fair", f"{ledger}; the money was not checked", sentence)
    since = f" of every day since {books.totals_since}" if books.totals_since else ""
    sentence = f"{chain}, and the running totals{since} are the sums of the rows."
    return Verdict("good", f"{ledger} and the money adds up", sentence)


def what_was_checked(books: Books) -> list[str]:
    """Exactly what stands behind the verdict, and what does not."""
    if not books.rows:
        return ["There are no rows to check."]
    lines = [
        f"Rows {count(books.first)} to {count(books.last)}: each one's hash is that of its content, and each follows "
        "the one before."
        if books.whole
        else f"Rows {count(books.first)} to {count(books.last)}: the hash of each, and that it follows the one before."
    ]
    if not books.from_start:
        older = count(books.first - 1)
        lines.append(f"The {older} older rows were not read. More: --rows; all of them: spiritsafe ledger verify.")
    lines.append(_signatures(books))
    if books.totals == "absent":
        lines.append(
            "Requests, tokens and money in the totals were not compared with the rows; --rows reads more rows."
        )
    else:
        days = f"each UTC day from {books.totals_since} on" if books.totals_since else "each day, each month, all time"
        lines.append(
            f"Requests, tokens and money in the totals, by account, key, organisation and model, of {days}: "
            + ("they are the sums of the rows." if books.totals == "match" else "they are not the sums of the rows.")
        )
    lines.append("Personal fields were not read, nor their commitments compared: spiritsafe ledger verify does that.")
    return lines


def _signatures(books: Books) -> str:
    if not books.signers:
        return "No checkpoint is signed yet: the chain alone does not show whether all of it was rewritten."
    number = books.checkpoints + books.older_checkpoints
    signed = "One signed checkpoint" if number == 1 else f"{count(number)} signed checkpoints"
    keys = " and ".join(books.signers)
    whose = (
        f"by the key you gave, {keys}"
        if books.anchored
        else f"by a key found beside them, {keys}: compare it with the guard's own, or give that with --public-key"
    )
    return f"{signed}, the last over row {count(books.signed_row)}, {whose}."


def guard_limits(figures: GuardFigures, config: GuardConfig) -> list[str]:
    """What this report does not show."""
    books, recent = figures.books, figures.books.recent
    lines = [
        "Copying that needs few replies. A thousand good answers can teach a model a skill (s1, arXiv 2501.19393, took "
        "1,000), and whoever takes a thousand looks like any customer. No figure of volume here shows that; withheld "
        "reasoning, marks and terms act there.",
        "Who is behind an account. One customer may hold many; only clusters that were linked count as one here.",
        "Requests that were refused (limits, terms, bad input): they leave no row. The guard counts them at /metrics.",
        "Whether rows were true when they were written. The chain shows only whether they were changed afterwards.",
    ]
    if books.rows:
        lines.append("Whether the end of the ledger was cut off: a shortened chain looks whole.")
    if recent.count:
        lines.append("The guard's own part in the times: they run to the last byte and are mostly the model's.")
    lines.append(
        "Limits per minute, limits of single keys, and what is reserved for requests under way: allowances are "
        "compared with what is in the ledger, by UTC day and month."
    )
    if recent.count and recent.marked < recent.count:
        lines.append(
            f"Where the {percent(1 - recent.marked / recent.count)} of replies that carried no mark went: nothing in "
            "them leads back to an account."
        )
    if not recent.complete:
        rows = count(figures.most_rows)
        lines.append(f"Statuses, times and policy of all {DAYS} days: they come from the newest {rows} rows only.")
    if config.ladder.shadow:
        lines.append("What the ladder would have changed: it is in shadow, so its steps are recorded and do nothing.")
    return lines
