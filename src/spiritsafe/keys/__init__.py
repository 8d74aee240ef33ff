"""Secrets: key sets with epochs, the keys derived from them, the ids that name them, and commitments to all of them."""

from spiritsafe.keys._commit import SLOTS, commit_keys, open_accounts, open_leaf
from spiritsafe.keys._commitment import Commitment, Leaf, Tree, load_commitment, load_leaf, load_leaves, verify_leaf
from spiritsafe.keys._derive import KEY_BYTES, decoy_keys
from spiritsafe.keys._file import load_keys, new_keys, rotate_keys
from spiritsafe.keys._keyset import HOUSE_SLOT, Epoch, KeyId, KeySet
from spiritsafe.keys._seal import read_passphrase

__all__ = [
    "HOUSE_SLOT",
    "KEY_BYTES",
    "SLOTS",
    "Commitment",
    "Epoch",
    "KeyId",
    "KeySet",
    "Leaf",
    "Tree",
    "commit_keys",
    "decoy_keys",
    "load_commitment",
    "load_keys",
    "load_leaf",
    "load_leaves",
    "new_keys",
    "open_accounts",
    "open_leaf",
    "read_passphrase",
    "rotate_keys",
    "verify_leaf",
]
