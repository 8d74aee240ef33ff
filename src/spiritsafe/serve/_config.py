"""GUARD.yaml: everything an operator decides, read strictly."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from spiritsafe.config import StrictModel
from spiritsafe.serve._config_rules import (
    STEPS,
    Count,
    LadderConfig,
    LimitsConfig,
    LimitSet,
    OutputRules,
    Rule,
    Share,
    Step,
    Tier,
    Usd,
)
from spiritsafe.spend import Price
from spiritsafe.wire import REFUSED

__all__ = [
    "STEPS",
    "DrainConfig",
    "GuardConfig",
    "LadderConfig",
    "LimitSet",
    "LimitsConfig",
    "LogsConfig",
    "OtelConfig",
    "OutputRules",
    "PriceEntry",
    "Rule",
    "Step",
    "TermsConfig",
    "Tier",
    "TwinsConfig",
    "Upstream",
    "WatermarkConfig",
    "WebhookConfig",
]

Address = Annotated[str, StringConstraints(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$")]
HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+(/\S*)?$")]


class Upstream(StrictModel):
    """A server that answers. Several may serve one model; `weight` shares the work among the healthy ones.

    ca_file: authorities in PEM, believed in place of the system's; for one of your own.
    watermark: how the key id travels: this project's field, or vLLM's `vllm_xargs`.
    tokenizer: a tokenizer.json, or a folder that holds one, to count tokens where usage is absent.
    timeout_s: silence before giving up, at the first byte and between bytes.  total_s: for a whole reply.
    health_path: asked every `health_every_s`; relative to the server's root.
    image_tokens: the most tokens an image takes.  template_tokens: the most that the chat template adds of its own,
        besides a few around each message and tool: a default system prompt, instructions for tools.
    reasoning_open: the chat template opens the reasoning itself, so replies begin inside it, without a tag.
    context: the most tokens of a prompt and its reply together.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    base_url: HttpUrl
    api_key_env: str | None = None
    ca_file: Path | None = None
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    price: Price
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    total_s: Annotated[float, Field(gt=0)] = 1800.0
    connect_s: Annotated[float, Field(gt=0)] = 5.0
    health_path: str | None = None
    health_every_s: Annotated[float, Field(gt=0)] = 5.0
    tokenizer: Path | None = None
    image_tokens: Count = 1600
    template_tokens: Count = 1024
    reasoning_open: bool = False
    watermark: Literal["spiritsafe", "vllm"] = "spiritsafe"
    context: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _has_tls(self) -> Upstream:
        if self.ca_file is not None and not self.base_url.startswith("https://"):
            raise ValueError("ca_file is for upstreams over https; correct base_url, or leave it out")
        return self


class PriceEntry(Price):
    """The price of a model from a day on (UTC); the newest entry that has begun counts, else the upstream's price."""

    from_: Annotated[date, Field(alias="from")]
    model: str


class TermsConfig(StrictModel):
    version: str
    url: HttpUrl
    required: bool = True


class WatermarkConfig(StrictModel):
    """greedy: what becomes of requests at temperature 0 on marked tiers; refuse is enforced here, kgw and raise by the
    engine that marks, which must be started with the same choice."""

    keys: Path
    greedy: Literal["kgw", "raise", "refuse"] = "kgw"
    passphrase_env: str | None = None
    passphrase_file: Path | None = None


class TwinsConfig(StrictModel):
    """consent: "terms": accepting the terms is consent; "account": only accounts marked as consenting.
    usd_per_day: what the operator spends on second replies, at list prices; no limit unless given."""

    retention_days: Annotated[int, Field(ge=1, le=3650)] = 400
    consent: Literal["terms", "account"] = "terms"
    usd_per_day: Usd | None = None


class StateConfig(StrictModel):
    """journal: folder of the crash journals, on a local disk; unless given, guard.journal beside guard.db, or here.
    secrets: file with the guard's own secrets, made at first use."""

    database: Annotated[str, StringConstraints(pattern=r"^(sqlite:///.+|postgresql://.+)$")] = "sqlite:///guard.db"
    limits: Annotated[str, StringConstraints(pattern=r"^(memory|rediss?://.+|unix://.+)$")] = "memory"
    journal: Path | None = None
    secrets: Path = Path("guard.secrets")

    @property
    def journal_folder(self) -> Path:
        """Where the crash journals are."""
        if self.journal is not None:
            return self.journal
        is_file = self.database.startswith("sqlite:///")
        return Path(self.database.removeprefix("sqlite:///") if is_file else "guard").with_suffix(".journal")


Happening = Literal["budget_80", "flagged", "suspended"]


class WebhookConfig(StrictModel):
    """secret_env: signs bodies (HMAC-SHA-256 in the header `Spiritsafe-Signature`)."""

    url: HttpUrl
    events: Annotated[tuple[Happening, ...], Field(min_length=1)]
    secret_env: str | None = None


class LedgerConfig(StrictModel):
    """commit_ms: how long rows gather before they are written together.  retention_days: age at which personal fields
    go; the chain stays.  store_prompts: keep prompts in the ledger (off: sketches only)."""

    commit_ms: Annotated[int, Field(ge=1, le=5000)] = 50
    checkpoint_every_s: Annotated[float, Field(gt=0)] = 300.0
    retention_days: Annotated[int, Field(ge=1)] = 400
    store_prompts: bool = False


class LogsConfig(StrictModel):
    """requests: a line for each request ("all"), for those answered with an error ("errors"), or for none ("none").
    level: the least level of all other lines."""

    requests: Literal["all", "errors", "none"] = "all"
    level: Literal["debug", "info", "warning", "error"] = "info"


class OtelConfig(StrictModel):
    """Traces, sent by OTLP over HTTP. Needs the extra `otel`.

    endpoint: the collector's address for traces, such as http://127.0.0.1:4318/v1/traces.
    sample: the part of requests that is traced, whatever the caller's own trace says.
    headers_env: environment variable with headers for the collector, as `name=value,name=value`.
    """

    endpoint: HttpUrl
    sample: Share = 0.01
    headers_env: str | None = None


class DrainConfig(StrictModel):
    """How a guard stops. notice_s: how long it goes on taking requests while `/readyz` says that it will not, so that a
    load balancer finds out.  replies_s: what replies under way get after that."""

    notice_s: Annotated[int, Field(ge=0, le=3600)] = 0
    replies_s: Annotated[int, Field(ge=1, le=3600)] = 30

    @property
    def longest_s(self) -> int:
        """Notice and replies together."""
        return self.notice_s + self.replies_s


class CanariesConfig(StrictModel):
    """serve: answer a canary's prompt with its published variant; otherwise canaries are only planted by hand."""

    serve: bool = True


class GuardConfig(StrictModel):
    """A guard. The defaults listen on loopback only and keep everything in one SQLite file."""

    listen: Address = "127.0.0.1:8080"
    admin: Address = "127.0.0.1:8081"
    state: StateConfig = StateConfig()
    upstreams: Annotated[tuple[Upstream, ...], Field(min_length=1)]
    terms: TermsConfig | None = None
    tiers: Annotated[dict[str, Tier], Field(default_factory=lambda: {"default": Tier()})]
    watermark: WatermarkConfig | None = None
    twins: TwinsConfig = TwinsConfig()
    canaries: CanariesConfig = CanariesConfig()
    prices: tuple[PriceEntry, ...] = ()
    limits: Annotated[LimitsConfig, Field(default_factory=LimitsConfig)]
    organisations: Annotated[dict[str, LimitSet], Field(default_factory=dict)]
    ladder: LadderConfig = LadderConfig()
    ledger: LedgerConfig = LedgerConfig()
    allow_fields: tuple[str, ...] = ()
    webhooks: tuple[WebhookConfig, ...] = ()
    key_prefix: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{1,12}$")] = "ss"
    max_body_mb: Annotated[float, Field(gt=0, le=256)] = 8.0
    drain: DrainConfig = DrainConfig()
    logs: LogsConfig = LogsConfig()
    otel: OtelConfig | None = None
    trusted_proxies: tuple[str, ...] = ()
    asn_database: Path | None = None
    metrics_open: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> GuardConfig:
        if "default" not in self.tiers:
            raise ValueError("tiers needs one named default")
        names = [upstream.name for upstream in self.upstreams]
        if len(set(names)) != len(names):
            raise ValueError("two upstreams have one name")
        served = {model for upstream in self.upstreams for model in upstream.models}
        for name, tier in self.tiers.items():
            if tier.watermark and self.watermark is None:
                raise ValueError(f"tiers.{name}.watermark is true, but there is no watermark section with the keys")
            if missing := set(tier.models or ()) - served:
                raise ValueError(f"tiers.{name}.models: no upstream serves {', '.join(sorted(missing))}")
        if refused := [f"{name} ({REFUSED[name][1]})" for name in self.allow_fields if name in REFUSED]:
            raise ValueError(f"allow_fields cannot let these through: {', '.join(refused)}")
        starts = [(entry.model, entry.from_) for entry in self.prices]
        if len(set(starts)) != len(starts):
            raise ValueError("prices has two entries for one model from one day")
        if self.listen == self.admin and not self.listen.endswith(":0"):
            raise ValueError("listen and admin must be two addresses")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that some upstream serves, sorted."""
        return tuple(sorted({model for upstream in self.upstreams for model in upstream.models}))
