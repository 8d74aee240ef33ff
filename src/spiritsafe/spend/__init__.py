"""What things cost, and hard caps on it: prices and reserve → settle → refund."""

from spiritsafe.spend._budget import Budget, Caps, OverBudget, Spend, Ticket
from spiritsafe.spend._price import FREE, PICO, Price, dollars, pico_dollars

__all__ = [
    "FREE",
    "PICO",
    "Budget",
    "Caps",
    "OverBudget",
    "Price",
    "Spend",
    "Ticket",
    "dollars",
    "pico_dollars",
]
