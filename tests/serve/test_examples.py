"""The examples and the page on configuration: read with the real loader, so that neither drifts from the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from spiritsafe.config import load_config
from spiritsafe.serve import _config, _config_rules
from spiritsafe.serve._config import GuardConfig, LimitSet, OutputRules, Tier
from spiritsafe.serve._metric_families import FAMILIES
from spiritsafe.spend import Price

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/guard"
DOCS = ROOT / "docs/guard"

# Where the page describes each part. A tier's limits and rules stand in sections of their own.
SECTIONS: dict[str, tuple[type[BaseModel], set[str]]] = {
    "Top level": (GuardConfig, set()),
    "state": (_config.StateConfig, set()),
    "upstreams": (_config.Upstream, set()),
    "price": (Price, set()),
    "prices": (_config.PriceEntry, set(Price.model_fields)),
    "terms": (_config.TermsConfig, set()),
    "tiers": (Tier, set(LimitSet.model_fields) | set(OutputRules.model_fields)),
    "Limits of a tier, an organisation, a key": (LimitSet, set()),
    "Output of a tier": (Tier, set(Tier.model_fields) - set(OutputRules.model_fields)),
    "limits": (_config.LimitsConfig, set()),
    "watermark": (_config.WatermarkConfig, set()),
    "twins": (_config.TwinsConfig, set()),
    "canaries": (_config.CanariesConfig, set()),
    "ladder": (_config.LadderConfig, set()),
    "ledger": (_config.LedgerConfig, set()),
    "drain": (_config.DrainConfig, set()),
    "logs": (_config.LogsConfig, set()),
    "otel": (_config.OtelConfig, set()),
    "webhooks": (_config.WebhookConfig, set()),
}


def tables(page: str) -> dict[str, dict[str, str]]:
    """By section: the first two columns of its table, keys to defaults."""
    found = {}
    for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^\| `([\w]+)` \| (.*?) \| ", part, re.MULTILINE)
        found[part.partition("\n")[0].strip()] = dict(rows)
    return found


def default_of(field: FieldInfo) -> str:
    """A default as the page writes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or (isinstance(value, dict) and value):
        return ""
    if value is None or value == {}:
        return ""
    return flow(value)


def flow(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(flow, value))}]"
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_has_every_key_with_its_default(section: str) -> None:
    model, elsewhere = SECTIONS[section]
    fields = {field.alias or name: field for name, field in model.model_fields.items() if name not in elsewhere}
    expected = {name: default_of(field) for name, field in fields.items()}
    assert tables((DOCS / "configuration.md").read_text())[section] == expected


def test_the_page_has_every_model_of_the_config() -> None:
    """A new part of the config needs a section."""
    defined = {
        thing
        for module in (_config, _config_rules)
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, BaseModel) and thing.__module__ == module.__name__
    }
    described = {model for model, _ in SECTIONS.values()}
    assert defined - described - {OutputRules, _config_rules.PriceStep} == set()


def test_the_yaml_on_the_pages_is_valid() -> None:
    blocks = [
        block
        for page in ("README.md", "configuration.md")
        for block in re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    ]
    assert blocks
    base = yaml.safe_load((EXAMPLES / "guard.yaml").read_text())
    for block in blocks:
        GuardConfig.model_validate(base | yaml.safe_load(block))


@pytest.mark.parametrize("name", ["guard.yaml", "guard-replicas.yaml"])
def test_the_example_configs_load(name: str) -> None:
    config = load_config(EXAMPLES / name, GuardConfig)
    assert config.models == ("smollm2-135m",)
    assert all(tier.usd_per_day or tier.usd_per_month for tier in config.tiers.values())
    # the admin port is never offered to the world
    assert config.admin.startswith("127.0.0.1:")


def test_replicas_share_what_they_must() -> None:
    config = load_config(EXAMPLES / "guard-replicas.yaml", GuardConfig)
    compose = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
    guard = compose["services"]["guard"]
    assert guard["deploy"]["replicas"] >= 2
    assert config.state.database.startswith("postgresql://") and config.state.limits.startswith("redis://")
    # the hosts of the config are services, reached over a network they have in common
    for host in (re.search(r"@([\w.]+):", config.state.database), re.search(r"//([\w.]+):", config.state.limits)):
        assert host is not None
        assert set(compose["services"][host[1]]["networks"]) & set(guard["networks"])
        assert host[1] in guard["depends_on"]
    assert (
        "ports" not in guard
        and "ports" not in compose["services"]["db"]
        and "ports" not in compose["services"]["redis"]
    )
    # what the config names in the container is mounted there, and what it wants from the environment is passed
    mounts = [volume.split(":")[1] for volume in guard["volumes"]]
    assert any(str(config.state.secrets).startswith(mount) for mount in mounts)
    assert any(str(config.state.journal_folder).startswith(mount) for mount in mounts)
    assert {upstream.api_key_env for upstream in config.upstreams} <= set(guard["environment"])
    assert guard["stop_grace_period"] == "40s"


def test_no_password_is_written_into_an_example() -> None:
    for path in EXAMPLES.iterdir():
        assert not re.search(r"://[^/\s:]+:[^@\s]+@", path.read_text()), path


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    text = (EXAMPLES / "spiritsafe.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert start.split()[1] == "serve"
    # systemd must not be quicker than the guard's own time
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(stop) > _config.DrainConfig().longest_s + 5
    # started again whatever happens, unless guard.yaml is wrong
    assert "\nRestart=on-failure\nRestartPreventExitStatus=2\n" in text and "\nStartLimitIntervalSec=0\n" in text
    if shutil.which("systemd-analyze"):
        unit = tmp_path / "spiritsafe.service"
        unit.write_text(text.replace(start.split()[0], sys.executable))
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_alerts_ask_for_metrics_that_exist() -> None:
    names = set()
    for family in FAMILIES:
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[family.kind]
        names |= {family.name + suffix for suffix in suffixes}
    alerts = yaml.safe_load((EXAMPLES / "alerts.yml").read_text())
    expressions = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    asked = {name for expression in expressions for name in re.findall(r"spiritsafe_\w+", expression)}
    assert len(asked) >= 6
    assert asked <= names
    scraped = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    assert scraped["rule_files"] == ["alerts.yml"]
    assert scraped["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:8080"]}]


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
