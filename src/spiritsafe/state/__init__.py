"""The guard's database: SQLite by default, Postgres where several processes serve. One schema, one way to ask."""

from spiritsafe.state._database import Database, Transaction, Unavailable

__all__ = ["Database", "Transaction", "Unavailable"]
