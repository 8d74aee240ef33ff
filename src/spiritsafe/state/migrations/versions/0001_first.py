"""The first schema. Times are Unix seconds, money pico-dollars, structured values JSON text, flags 0 or 1."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_PICO = sa.BigInteger


def _text(name: str, *, null: bool = False, **more: object) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=null, **more)  # type: ignore[arg-type]


def _time(name: str, *, null: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=null)


def _int(name: str, *, null: bool = False, **more: object) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=null, **more)  # type: ignore[arg-type]


def upgrade() -> None:
    # Who may ask. `changed` is the value of counters.changes at the row's last change: readers poll for what is newer.
    op.create_table("counters", _text("name", primary_key=True), _int("value"))
    op.create_table(
        "accounts",
        _text("id", primary_key=True),
        _text("name"),
        _text("org", null=True),
        _text("tier"),
        _time("created"),
        _text("status", server_default="active"),  # active | suspended
        _text("reason", null=True),
        _text("appeal", null=True),
        _text("terms_version", null=True),
        _time("terms_accepted", null=True),
        _int("twin_consent", server_default="0"),
        _text("payment_id", null=True),
        _text("limits", server_default="{}"),
        _int("slot", null=True, unique=True),
        _int("slot_seq", null=True),  # the ledger row that binds the slot; without it the slot is only set aside
        _text("cluster", null=True),
        _int("changed"),
    )
    op.create_index("accounts_changed", "accounts", ["changed"])
    op.create_index("accounts_name", "accounts", ["name"], unique=True)
    op.create_table(
        "api_keys",
        _text("id", primary_key=True),  # the public part
        _text("account"),
        sa.Column("mac", sa.LargeBinary, nullable=False),  # HMAC-SHA-256 of the whole key under the guard's pepper
        _text("name", null=True),
        _text("scopes"),  # JSON list
        _text("limits", server_default="{}"),
        _time("created"),
        _time("expires", null=True),
        _time("revoked", null=True),
        _int("changed"),
    )
    op.create_index("api_keys_changed", "api_keys", ["changed"])
    op.create_index("api_keys_account", "api_keys", ["account"])
    op.create_table(
        "ladder",
        _text("subject", primary_key=True),  # account:ID | cluster:ID
        _text("step"),
        _int("shadow"),
        _text("reason"),
        _text("decided_by"),
        _time("at"),
        _text("features", server_default="{}"),
        _int("changed"),
    )
    op.create_index("ladder_changed", "ladder", ["changed"])

    # The chain. `hash` covers prev_hash, kind and payload; what is personal stands apart and enters as commitments.
    op.create_table(
        "ledger",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
        _text("kind"),  # reply | event
        _time("ts"),
        _text("request_id", null=True),
        _text("account", null=True),
        _text("payload"),
        _text("prev_hash"),
        _text("hash"),
    )
    op.create_index("ledger_request", "ledger", ["request_id"], unique=True)
    op.create_index("ledger_account", "ledger", ["account", "ts"])
    op.create_index("ledger_ts", "ledger", ["ts"])
    op.create_table(
        "personal",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
        _time("ts"),
        _text("account", null=True),
        _text("salt"),
        _text("fields"),  # JSON: end_user, ip_prefix, asn, user_agent, payment_id
    )
    op.create_index("personal_ts", "personal", ["ts"])
    op.create_table(
        "checkpoints",
        _int("seq", primary_key=True),
        _text("hash"),
        _time("at"),
        _text("public_key"),
        _text("signature"),
    )
    # Running sums per scope and window, written with the rows they count.
    op.create_table(
        "totals",
        _text("scope", primary_key=True),  # account:ID | key:ID | org:NAME | model:NAME | account_model:ID:NAME
        _text("time_window", primary_key=True),  # 2026-11-24 | 2026-11 | all
        _int("requests"),
        _int("tokens_in"),
        _int("tokens_out"),
        # a model's total may pass 2^63 pico-dollars, which is 9.2 million dollars
        sa.Column("pico", _PICO().with_variant(sa.Numeric(38, 0), "postgresql"), nullable=False),
    )

    # What the proof needs later.
    op.create_table(
        "twins",
        _text("request_id", primary_key=True),
        _text("account"),
        _text("model"),
        _time("created"),
        _time("expires"),
        _text("watermark_key_id", null=True),
        _text("request"),  # JSON: what was sent upstream
        _text("first"),
        _text("second"),
        _int("coin"),  # which of the two was released: 0 | 1
        sa.Column("salt", sa.LargeBinary, nullable=False),
        _text("twin_commit"),
    )
    op.create_index("twins_expires", "twins", ["expires"])
    op.create_table(
        "canaries",
        _text("id", primary_key=True),
        _time("created"),
        _text("prompt"),
        _text("variants"),  # JSON list
        _int("published"),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        _text("canary_commit"),
        _text("state"),  # pending: not in the ledger yet | active | retired
        _int("changed"),
    )
    op.create_index("canaries_changed", "canaries", ["changed"])
    # Messages that must arrive although the other side is away for a while.
    op.create_table(
        "outbox",
        _text("id", primary_key=True),
        _text("url"),
        _text("event"),
        _text("body"),
        _time("created"),
        _int("attempts", server_default="0"),
        _time("next_at", null=True),  # null: delivered or given up, kept so that it is not sent again
        _time("claimed_until", null=True),
        _time("keep_until", null=True),  # null: for good
    )
    op.create_index("outbox_next", "outbox", ["url", "next_at"])


def downgrade() -> None:
    raise NotImplementedError("restore the backup taken before the upgrade")
