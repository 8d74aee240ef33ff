"""`spiritsafe serve --check`: look at everything a guard needs before customers do, and say what to do about it.

It changes nothing: no schema is migrated, no file made that stays, no message sent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.serve._config import GuardConfig, LimitSet

__all__ = ["Finding", "check_guard"]

_FILES = 4096
_OLD_EPOCH_DAYS = 62


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. An error keeps the guard from serving; a warning is something to know.

    message: what was found and, unless all is well, what to do.
    """

    level: Literal["ok", "warning", "error"]
    what: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Check = Callable[[GuardConfig], Awaitable[list[Finding]]]


async def check_guard(config: GuardConfig, *, workers: int = 1) -> list[Finding]:
    """Everything that was found, in the order in which a guard needs it. Takes some seconds where something is away."""
    from spiritsafe.serve._check_state import check_database, check_files, check_limits
    from spiritsafe.serve._check_upstreams import check_terms_page, check_upstreams

    checks: tuple[Check, ...] = (
        _settings,
        _environment,
        _watermark,
        _extras,
        check_files,
        check_database,
        check_limits,
        check_upstreams,
        check_terms_page,
        _addresses,
    )
    groups = await asyncio.gather(*(_safely(check, config) for check in checks))
    found = [finding for group in groups for finding in group]
    if workers > 1 and config.state.limits == "memory":
        found.append(
            Finding(
                "error",
                "workers",
                f"{workers} workers with limits in memory would allow {workers} times every limit; set state.limits to"
                " redis://HOST:6379/0, or serve with one worker",
            )
        )
    return found


async def _safely(check: Check, config: GuardConfig) -> list[Finding]:
    """A check that cannot be made is a finding, not the end of the others."""
    what = check.__name__.removeprefix("check_").strip("_")
    try:
        return await check(config)
    except SpiritsafeError as error:
        return [Finding("error", what, str(error))]
    except ModuleNotFoundError as error:
        return [Finding("error", what, f"the package {error.name} is not installed; see packages")]


async def _settings(config: GuardConfig) -> list[Finding]:
    return list(_doubts(config)) or [Finding("ok", "settings", f"{len(config.tiers)} tiers, {_models(config)}")]


def _doubts(config: GuardConfig) -> Iterator[Finding]:
    served = set(config.models)
    for upstream in config.upstreams:
        if upstream.price.free:
            yield _warn(
                f"upstreams.{upstream.name}.price",
                "it costs nothing, so no dollar limit will ever bite; set what a token is worth to you",
            )
    for name in sorted({entry.model for entry in config.prices} - served):
        yield _warn("prices", f"no upstream serves {name}; remove the entry, or name the model as it is served")
    for name in sorted(set(config.limits.models) - served):
        yield _warn("limits.models", f"no upstream serves {name}; remove the entry, or name the model as it is served")
    for name, tier in config.tiers.items():
        if not _limited(tier):
            yield _warn(
                f"tiers.{name}", "it has no limit at all: one key may take everything; set at least usd_per_day"
            )
        elif tier.shadow is True:
            yield _warn(f"tiers.{name}.shadow", "its limits are only recorded, none is enforced; set shadow: false")
        if tier.twin_share and config.twins.consent == "terms" and config.terms is None:
            yield _warn(f"tiers.{name}.twin_share", "nobody can consent: add terms, or set twins: {consent: account}")
    if config.limits.when_state_is_down == "open":
        yield _warn("limits.when_state_is_down", "while Redis is away nothing is limited; closed refuses instead")
    if config.terms is None:
        yield _warn("terms", "customers agree to nothing before they ask; add terms: {version, url}")
    if config.allow_fields:
        yield _warn(
            "allow_fields",
            f"{', '.join(config.allow_fields)}: passed on unread; none of them may change what a reply costs or shows",
        )
    if config.ledger.store_prompts:
        yield _warn("ledger.store_prompts", "customers' prompts are kept in clear; the terms must say so")


def _limited(limits: LimitSet) -> bool:
    return any(
        getattr(limits, name) is not None
        for name in LimitSet.model_fields
        if name not in ("shadow", "usd_lifetime_per_day")
    )


def _models(config: GuardConfig) -> str:
    return f"serves {', '.join(config.models)}"


async def _environment(config: GuardConfig) -> list[Finding]:
    """Every environment variable that the config names."""
    named = [(f"upstreams.{u.name}.api_key_env", u.api_key_env) for u in config.upstreams]
    named += [(f"webhooks.{index}.secret_env", hook.secret_env) for index, hook in enumerate(config.webhooks)]
    if config.watermark is not None:
        named.append(("watermark.passphrase_env", config.watermark.passphrase_env))
    if config.otel is not None:
        named.append(("otel.headers_env", config.otel.headers_env))
    wanted = [(where, name) for where, name in named if name is not None]
    missing = [
        Finding("error", where, f"the environment variable {name} is not set; export it before starting")
        for where, name in wanted
        if not os.environ.get(name)
    ]
    if missing or not wanted:
        return missing
    return [Finding("ok", "environment", ", ".join(sorted({name for _, name in wanted})) + " set")]


async def _watermark(config: GuardConfig) -> list[Finding]:
    from datetime import UTC, datetime

    from spiritsafe.config import parse_config
    from spiritsafe.keys import load_keys, read_passphrase
    from spiritsafe.watermark._marking import Marking

    marks = config.watermark
    if marks is None:
        return []
    keys = load_keys(marks.keys, read_passphrase(marks.passphrase_env, marks.passphrase_file))
    marking = parse_config(keys.marking, Marking, where=str(marks.keys))
    found = [Finding("ok", "watermark", f"{keys.id}, epoch {keys.current.name}, {marking.scheme}")]
    age = (datetime.now(UTC) - datetime.fromisoformat(keys.current.created)).days
    if age > _OLD_EPOCH_DAYS:
        found.append(
            _warn(
                "watermark.keys",
                f"epoch {keys.current.name} is {age} days old; run: spiritsafe watermark keys rotate {marks.keys}",
            )
        )
    if not any(tier.watermark for tier in config.tiers.values()):
        found.append(_warn("watermark", "no tier has watermark: true, so nothing is marked"))
    return found


async def _extras(config: GuardConfig) -> list[Finding]:
    """Optional packages that this config needs."""
    import importlib.util

    needed = {"prometheus_client": "guard", "sqlalchemy": "guard", "alembic": "guard", "rensa": "guard"}
    if config.state.database.startswith("postgresql"):
        needed["asyncpg"] = "postgres"
    if config.state.limits != "memory":
        needed["redis"] = "redis"
    if config.otel is not None:
        needed["opentelemetry"] = "otel"
    missing = sorted({extra for package, extra in needed.items() if importlib.util.find_spec(package) is None})
    return [Finding("error", "packages", f"run: pip install 'spiritsafe[{extra}]'") for extra in missing]


async def _addresses(config: GuardConfig) -> list[Finding]:
    from spiritsafe.serve._peer import Peers
    from spiritsafe.serve._server import bind

    found = []
    for name, address in (("listen", config.listen), ("admin", config.admin)):
        try:
            bind(address).close()
        except BadInput as error:
            found.append(Finding("error", name, f"{error}; a guard that already runs there is one reason"))
            continue
        found.append(Finding("ok", name, f"{address} is free"))
    if not _is_local(config.admin):
        found.append(
            _warn("admin", f"{config.admin} can be reached from outside; keep it on loopback or a private network")
        )
    if not _is_local(config.listen):
        found.append(
            _warn("listen", f"{config.listen} speaks plain HTTP; put TLS in front (a proxy) unless one is there")
        )
        if config.metrics_open:
            found.append(_warn("metrics_open", "anyone who reaches the public port reads the metrics"))
    try:
        Peers(config.trusted_proxies, config.asn_database).close()
    except ValueError as error:
        found.append(Finding("error", "trusted_proxies", f"{error}; write addresses or networks, such as 10.0.0.0/8"))
    except BadInput as error:
        found.append(Finding("error", "asn_database", str(error)))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < _FILES:
        found.append(
            _warn("open files", f"at most {most} are allowed, two a request; raise the limit (ulimit -Hn, LimitNOFILE)")
        )
    return found


def _is_local(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _warn(what: str, message: str) -> Finding:
    return Finding("warning", what, message)
