"""After a crash: what a process that is gone had in flight is charged for what it released, and no more."""

from __future__ import annotations

import asyncio
import logging
from decimal import Decimal
from pathlib import Path

from spiritsafe.ledger import Ledger, LedgerRow, Orphan, recover
from spiritsafe.records import Usage
from spiritsafe.serve._call import NOTHING, charge
from spiritsafe.serve._limits import Limiter
from spiritsafe.serve._second_replies import SecondReplies
from spiritsafe.serve._types import Demand
from spiritsafe.spend import Price
from spiritsafe.state import Unavailable

__all__ = ["Lost", "settle_lost", "write_lost"]

_log = logging.getLogger("spiritsafe.serve")


Lost = tuple[Orphan, LedgerRow]


async def write_lost(folder: Path, ledger: Ledger) -> list[Lost]:
    """Write the rows that dead processes of this machine left in their journals. To be settled by `settle_lost`.

    A request whose row was journalled counts as it was. Of one that was still under way, what had been released counts:
    nothing for a whole reply, the journal's upper bound for a stream.
    """
    lost: list[Lost] = []
    for orphan in await asyncio.to_thread(recover, folder):
        row = orphan.row or _lost(orphan)
        if row is None:
            orphan.done()
        else:
            lost.append((orphan, row))
    await asyncio.gather(*[ledger.append(row) for _, row in lost])
    return lost


async def settle_lost(lost: list[Lost], limiter: Limiter, second_replies: SecondReplies) -> list[Lost]:
    """Give the reservations of lost requests back, customers' and operator's; those that could not be, as the limits'
    state or the database is away."""
    left: list[Lost] = []
    try:
        await second_replies.give_back(row.request_id for _, row in lost)
    except Unavailable:
        return lost
    for orphan, row in lost:
        ticket = orphan.facts.get("ticket")
        try:
            if ticket is not None:
                await limiter.recover(ticket, Demand(row.tokens_in, row.tokens_out, -(-row.pico // 1000)))
        except Unavailable:
            left.append((orphan, row))
        else:
            orphan.done()
    return left


def _lost(orphan: Orphan) -> LedgerRow | None:
    """The row of a request that never got one; None if its journal is too damaged to say whose it was."""
    facts, released = orphan.facts, orphan.released_tokens
    if not facts:
        _log.error("request %s cannot be accounted for: its journal is damaged", orphan.request_id)
        return None
    usage = NOTHING if released is None else Usage(facts["tokens_in"], released)
    price = Price.model_validate(facts["price"])
    return LedgerRow(
        ts=facts["ts"],
        request_id=orphan.request_id,
        account=facts["account"],
        key_id=facts["key_id"],
        model=facts["model"],
        tokens_in=usage.input_tokens,
        tokens_out=usage.output_tokens,
        pico=charge(price, Decimal(facts["times"]), usage),
        status="lost",
        stream=facts["stream"],
        n=facts["n"],
        policy="recovered",
        watermark_key_id=facts["watermark_key_id"],
        account_slot=facts["account_slot"],
        org=facts["org"],
    )
