"""What counts as right, and what a student must not have seen: held-out texts and the overlap with them."""

from spiritsafe.tasks._benchmark import read_held_out
from spiritsafe.tasks._contamination import Contamination, HeldOut
from spiritsafe.tasks._text import collapse, jaccard, shingles, words

__all__ = ["Contamination", "HeldOut", "collapse", "jaccard", "read_held_out", "shingles", "words"]
