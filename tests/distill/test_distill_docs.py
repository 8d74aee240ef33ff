"""What the documentation says about recipes is what recipes are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from spiritsafe.config import parse_config
from spiritsafe.curate import STEPS
from spiritsafe.distill import Recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", ["teacher", "prompts", "collect", "student", "train", "evaluate"])
def test_every_key_is_documented_and_every_documented_key_exists(stage: str) -> None:
    section = (ROOT / "docs/recipe.md").read_text().split(f"\n## {stage}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    model = Recipe.model_fields[stage].annotation
    assert model is not None
    fields = set(model.model_fields)
    if stage == "prompts":
        documented |= {"seed"}
    assert documented == fields


def test_every_curation_step_is_documented() -> None:
    page = (ROOT / "docs/curate.md").read_text()
    assert [name for name in STEPS if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_recipes_are_valid(recipe: Path) -> None:
    parse_config(yaml.safe_load(recipe.read_text()), Recipe, where=recipe.name)


def test_the_recipe_of_the_tutorial_is_valid() -> None:
    page = (ROOT / "docs/tutorial.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    parse_config(yaml.safe_load(block), Recipe, where="tutorial")


def test_the_teacher_of_contributing_answers() -> None:
    import asyncio

    from spiritsafe.records import Message, Prompt, Request, Sampling

    (block,) = re.findall(r"```python\n(.*?class Parrot.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    scope: dict[str, object] = {}
    exec(block, scope)
    parrot = scope["Parrot"]()  # type: ignore[operator]
    answer = asyncio.run(parrot.complete(Request(Prompt((Message("user", "good day"),)), Sampling(), n=2)))
    assert [reply.text for reply in answer.replies] == ["good day", "good day"]


def test_the_loss_of_contributing_has_the_gradient_it_claims() -> None:
    import torch

    (body,) = re.findall(r"```python\n(def reverse_kl.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    scope: dict[str, object] = {"Tensor": torch.Tensor}
    exec(body, scope)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 7, dtype=torch.float64, generator=generator).log_softmax(-1)
    log_q = logits.log_softmax(-1)
    (log_q.exp() * (log_q - teacher)).sum().backward()
    in_place = logits.detach().clone()
    scope["reverse_kl"](in_place, teacher)  # type: ignore[operator]
    torch.testing.assert_close(in_place, logits.grad)
