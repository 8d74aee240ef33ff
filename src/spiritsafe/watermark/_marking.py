"""How a key set marks (its settings, as they stand in the key file), and whose marks a teacher makes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from spiritsafe.config import StrictModel

__all__ = ["GREEDY_BELOW", "Greedy", "MarkerConfig", "Marking", "SchemeName"]

SchemeName = Literal["gumbel-dual", "kgw", "synthid"]
Greedy = Literal["kgw", "raise", "refuse"]
GREEDY_BELOW = 0.05  # a reply this cold is greedy for all a sampled mark could do in it


class Marking(StrictModel):
    """Settings of the marks, the same for everyone who marks or reads under a key set.

    context_width: tokens that the PRF hashes.
    account_share: share of contexts that the account's own key speaks for; the epoch key has the rest.
    surprise_bits: bits of surprise that each reply spends unmarked first, so that several replies differ.
    gamma, delta: KGW's green share and bias. They hold under every scheme: greedy requests may get KGW.
    depth: layers of the SynthID tournament.
    """

    scheme: SchemeName = "gumbel-dual"
    context_width: int = Field(default=2, ge=1, le=8)
    account_share: float = Field(default=0.5, ge=0, lt=1)
    surprise_bits: float = Field(default=16.0, ge=0)
    gamma: float = Field(default=0.25, gt=0, lt=1)
    delta: float = Field(default=2.0, gt=0, le=20)
    depth: int = Field(default=30, ge=1, le=52)

    @model_validator(mode="after")
    def _own_settings(self) -> Marking:
        if "depth" in self.model_fields_set and self.scheme != "synthid":
            raise ValueError(f"depth belongs to scheme synthid, not to {self.scheme}; leave it out")
        return self

    def under(self, scheme: SchemeName) -> Marking:
        """The same settings for another scheme, such as KGW for greedy requests."""
        if scheme == self.scheme:
            return self
        kept = self.model_dump(exclude={"scheme", "depth"})
        return Marking(scheme=scheme, **kept)


class MarkerConfig(StrictModel):
    """Whose marks a teacher makes.

    keys: path of a key set.  greedy: what becomes of requests at temperature 0: "kgw" biases the greedy choice towards
    green tokens, "raise" samples at `least_temperature` instead, "refuse" refuses them.
    passphrase_env, passphrase_file: where the key file's passphrase is, if it has one.
    """

    keys: str
    greedy: Greedy = "kgw"
    least_temperature: float = Field(default=0.7, ge=GREEDY_BELOW, le=2)
    passphrase_env: str | None = None
    passphrase_file: str | None = None
