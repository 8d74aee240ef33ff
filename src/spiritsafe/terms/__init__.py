"""The registry of licences and provider terms, and the gate that reads it. Never legal advice."""

from spiritsafe.terms._actions import Actions, conditions_to_actions
from spiritsafe.terms._dataset import DatasetTerms, RowsOfTeacher, check_dataset
from spiritsafe.terms._decide import DISCLAIMER, Applied, Decision, combine, decide
from spiritsafe.terms._entries import STRICTNESS, Condition, Entry, Status, stricter
from spiritsafe.terms._gate import Stage, TermsRecord, gate
from spiritsafe.terms._registry import Registry

__all__ = [
    "DISCLAIMER",
    "STRICTNESS",
    "Actions",
    "Applied",
    "Condition",
    "DatasetTerms",
    "Decision",
    "Entry",
    "Registry",
    "RowsOfTeacher",
    "Stage",
    "Status",
    "TermsRecord",
    "check_dataset",
    "combine",
    "conditions_to_actions",
    "decide",
    "gate",
    "stricter",
]
