"""Attacks on marks as a tested harness: edit, dilute, rewrite, mix and forge texts, and count what is still found."""

from spiritsafe.watermark.attacks._host import stdlib_prose
from spiritsafe.watermark.attacks._paraphrase import PARAPHRASE_PROMPT
from spiritsafe.watermark.attacks._parse import ATTACKS, parse_attack, run_attacks
from spiritsafe.watermark.attacks._power import PowerRow, markdown, power_table
from spiritsafe.watermark.attacks._types import Attack, Rewrite, Text, Tools

__all__ = [
    "ATTACKS",
    "PARAPHRASE_PROMPT",
    "Attack",
    "PowerRow",
    "Rewrite",
    "Text",
    "Tools",
    "markdown",
    "parse_attack",
    "power_table",
    "run_attacks",
    "stdlib_prose",
]
