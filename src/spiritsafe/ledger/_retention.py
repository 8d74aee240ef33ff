"""Taking back what is personal. The chain holds commitments only, so it stays whole."""

from __future__ import annotations

from spiritsafe.state import Database

__all__ = ["forget_personal"]

_AT_ONCE = 2000  # rows a transaction, so that writers are not kept waiting


async def forget_personal(db: Database, *, before: float, account: str | None = None) -> int:
    """Delete personal fields, with their salts, of rows older than `before` (Unix seconds), of one account or all;
    the number of rows that lost theirs. Without its salt a commitment can be guessed by nobody.

    Raises:
        Unavailable: the database is away.
    """
    which = "ts < $1" if account is None else "ts < $1 AND account = $3"
    arguments = (before, _AT_ONCE) if account is None else (before, _AT_ONCE, account)
    gone = 0
    while True:
        some = await db.execute(
            f"DELETE FROM personal WHERE seq IN (SELECT seq FROM personal WHERE {which} ORDER BY ts LIMIT $2)",  # noqa: S608
            *arguments,
        )
        gone += some
        if some < _AT_ONCE:
            return gone
