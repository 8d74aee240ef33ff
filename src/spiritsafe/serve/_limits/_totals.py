"""What the ledger says was spent, read from its database."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from spiritsafe.serve._limits._model import Seed, Total, TotalsSource
from spiritsafe.state import Database

__all__ = ["totals_source"]

_MOST = 8000  # values in one statement, well below what the databases take
_CLUSTER = "cluster:"


def totals_source(db: Database) -> TotalsSource:
    """Reads `totals`; a cluster's are the sums over the accounts that are linked now.

    Totals and the ids that have a row come from one statement, so from one moment, as long as they are fewer than 8,000
    of each; beyond that ids are read first, and what is committed in between counts twice rather than not at all.
    """

    async def read(pairs: Collection[tuple[str, str]], ids: Collection[str]) -> Seed:
        scopes = sorted({scope for scope, _ in pairs})
        windows = sorted({window for _, window in pairs})
        asked = list(ids)
        totals: dict[tuple[str, str], Total] = {}
        committed: set[str] = set()
        while True:
            some_ids, asked = asked[:_MOST], asked[_MOST:]
            some_scopes: list[str] = []
            if not asked:
                some_scopes, scopes = scopes[:_MOST], scopes[_MOST:]
            for row in await db.fetch(*_statement(some_scopes, windows, some_ids)):
                if row["kind"] == "row":
                    committed.add(row["scope"])
                else:
                    total = Total(int(row["pico"]), int(row["requests"]), int(row["tokens"]))
                    totals[row["scope"], row["time_window"]] = total
            if not asked and not scopes:
                return Seed(totals, frozenset(committed))

    return read


def _statement(scopes: Sequence[str], windows: Sequence[str], ids: Sequence[str]) -> tuple[str, *tuple[str, ...]]:
    values: list[str] = []

    def listed(some: Sequence[str]) -> str:
        values.extend(some)
        # no row has the empty text, and an empty list is no SQL
        return ", ".join(f"${len(values) - len(some) + n}" for n in range(1, len(some) + 1)) or "''"

    plain = [scope for scope in scopes if not scope.startswith(_CLUSTER)]
    clusters = [scope.removeprefix(_CLUSTER) for scope in scopes if scope.startswith(_CLUSTER)]
    in_windows = listed(windows)
    text = f"""
        SELECT 'total' AS kind, scope, time_window, pico, requests, tokens_in + tokens_out AS tokens
        FROM totals WHERE scope IN ({listed(plain)}) AND time_window IN ({in_windows})
    """  # noqa: S608 — placeholders only
    if clusters:
        text += f"""
        UNION ALL
        SELECT 'total', '{_CLUSTER}' || a.cluster, t.time_window, SUM(t.pico), SUM(t.requests),
            SUM(t.tokens_in + t.tokens_out)
        FROM accounts a JOIN totals t ON t.scope = 'account:' || a.id
        WHERE a.cluster IN ({listed(clusters)}) AND t.time_window IN ({in_windows})
        GROUP BY a.cluster, t.time_window
        """  # noqa: S608
    if ids:
        text += f"""
        UNION ALL
        SELECT 'row', request_id, '', 0, 0, 0 FROM ledger WHERE request_id IN ({listed(ids)})
        """  # noqa: S608
    return (text, *values)
