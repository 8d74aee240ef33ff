"""The keys that a plan opens, each as a detector: one hypothesis a key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import orjson

from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import RadioactivityConfig
from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput
from spiritsafe.keys import KEY_BYTES, Leaf
from spiritsafe.watermark import Detector, Marking, NativeDetector, engine_detector
from spiritsafe.watermark._marking import SchemeName

__all__ = ["Tried", "tried_keys"]

_NO_COIN = bytes(KEY_BYTES)  # where every context is the epoch key's, no coin is looked at


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """One key. detector: under this key.  layer: of which contexts it speaks, by the coin of its epoch."""

    name: str
    detector: Detector
    layer: Literal["epoch", "account"]
    slot: int | None = None
    key: bytes = field(default=b"", repr=False)


def tried_keys(config: RadioactivityConfig, evidence: Evidence, where: str) -> tuple[Tried, ...]:
    """Epoch keys in the order of their leaves, then accounts' keys.

    Raises:
        BadInput: no key, an engine's parameters or a marking that are not understood, or a coin key is missing.
    """
    if config.engine is not None:
        if config.params is None:
            raise BadInput(f"{where}: engine {config.engine} needs params: a JSON file of its watermark's settings")
        if evidence.leaves:
            raise BadInput(f"{where}: an engine's key is in its params; leave the opened keys out, or the engine")
        return (Tried(config.engine, engine_detector(config.engine, _params(config.params, evidence)), "epoch"),)
    marking = parse_config(config.marking or {}, Marking, where=f"{where}: marking")
    coins = {(leaf.epoch, leaf.scheme): leaf for leaf in evidence.leaves if leaf.purpose == "coin"}
    epochs = [leaf for leaf in evidence.leaves if leaf.purpose == "epoch"]
    accounts = [leaf for leaf in evidence.leaves if leaf.purpose == "account"]
    if not epochs and not accounts:
        raise BadInput(f"{where}: no key to test; open one (watermark keys open) and name it under leaves")
    return tuple(_tried(leaf, marking, coins, where) for leaf in [*epochs, *accounts])


def _tried(leaf: Leaf, marking: Marking, coins: dict[tuple[str, str], Leaf], where: str) -> Tried:
    scheme = leaf.scheme
    if scheme not in get_args(SchemeName):
        raise BadInput(f"{where}: scheme {scheme} of epoch {leaf.epoch} is not one of this version's")
    ours = marking.under(scheme)  # type: ignore[arg-type]
    coin = coins.get((leaf.epoch, scheme))
    if coin is None and ours.account_share > 0:
        raise BadInput(
            f"{where}: open the coin key of epoch {leaf.epoch} ({scheme}) too: with account_share "
            f"{ours.account_share:g} it says which contexts a key speaks for"
        )
    if leaf.slot is not None and ours.account_share == 0:
        raise BadInput(f"{where}: account_share is 0, so that no text carries an account's mark")
    key = bytes.fromhex(leaf.key), _NO_COIN if coin is None else bytes.fromhex(coin.key)
    epoch = f"epoch {leaf.epoch} ({scheme})"
    name = epoch if leaf.slot is None else f"account slot {leaf.slot}, {epoch}"
    detector = NativeDetector.of_keys(ours, [(leaf.epoch, *key)])
    return Tried(name, detector, "epoch" if leaf.slot is None else "account", leaf.slot, key[0])


def _params(name: str, evidence: Evidence) -> dict[str, Any]:
    path = evidence.input(name)
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        raise BadInput(f"{path}: cannot be read as JSON; give the engine's watermark settings") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: not a JSON object; give the engine's watermark settings")
    return value
