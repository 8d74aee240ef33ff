"""What second replies of twins hold of the operator's allowance, by request: a process that died gives it back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "second_replies",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("counter", sa.Text, nullable=False),  # the name in counters of the day it was taken from
        sa.Column("nano", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup taken before the upgrade")
