"""The model under test: local weights, or whatever answers at an address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from spiritsafe.audit._plan import SubjectConfig
from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput
from spiritsafe.teachers import TeacherConfig

if TYPE_CHECKING:
    from spiritsafe.audit._suspect_spend import Journal
    from spiritsafe.audit._types import Suspect
    from spiritsafe.records import Prompt
    from spiritsafe.spend import Budget, Price

__all__ = ["is_address", "open_control", "open_suspect"]


def is_address(source: str) -> bool:
    """True for what is asked over HTTP."""
    return source.startswith(("http://", "https://"))


def open_suspect(
    source: str,
    subject: SubjectConfig,
    *,
    budget: Budget | None = None,
    price: Price | None = None,
    journal: Journal | None = None,
) -> Suspect:
    """Open an http(s) address of an OpenAI-compatible API, else weights: a GGUF file, a Hugging Face folder, a hub id.

    Blocks: weights are loaded; an API that the plan says gives log-probabilities is tried with a few small requests,
    and has access `text` if it does not. Only safetensors and GGUF are read, never pickles.

    budget: every request is reserved there before it leaves.  price: needed where the budget is in dollars.

    Raises:
        BadInput: no such weights, or not the revision the plan names; an address without `subject.model` or its key, or
            where the plan says weights.
        TeacherError: the API cannot be reached.
        OverBudget: there is no room for the trial.
    """
    if not is_address(source):
        if "://" in source:
            raise BadInput(f"--suspect {source}: an address begins with http:// or https://; weights have no ://")
        from spiritsafe.audit._suspect_weights import WeightsSuspect

        return WeightsSuspect(source, subject)
    if subject.access == "weights":
        raise BadInput(
            f"--suspect {source}: the plan says subject.access: weights, and this is an address; give the weights, or "
            "set logprobs or text and freeze the plan again"
        )
    if subject.model is None:
        raise BadInput(
            f"--suspect {source}: the plan lacks subject.model, the name to ask the API for; freeze it again"
        )
    given = {"base_url": source, "model": subject.model, "api_key_env": subject.api_key_env}
    config = parse_config(given | {"revision": subject.revision}, TeacherConfig, where="--suspect")
    return _open_api(config, "suspect", subject.access == "logprobs", subject.base, budget, price, journal)


def open_control(
    name: str, config: TeacherConfig, *, logprobs: bool, budget: Budget | None = None, journal: Journal | None = None
) -> Suspect:
    """Open a control of the plan. logprobs: a test needs the log-probabilities of given text. As `open_suspect`."""
    if config.path is not None:
        from spiritsafe.audit._suspect_weights import WeightsSuspect

        return WeightsSuspect(config.path, SubjectConfig(name=name, access="weights", revision=config.revision))
    return _open_api(config, f"control {name}", logprobs, None, budget, config.effective_price, journal)


def _open_api(
    config: TeacherConfig,
    who: str,
    logprobs: bool,
    base: str | None,
    budget: Budget | None,
    price: Price | None,
    journal: Journal | None,
) -> Suspect:
    from spiritsafe.audit._suspect_api import ApiSuspect, find_way, plain, templated
    from spiritsafe.audit._suspect_spend import Purse

    try:
        config.api_key()
    except BadInput as error:
        section = "subject" if who == "suspect" else who.replace("control ", "controls.")
        raise BadInput(str(error).replace("teacher.", f"{section}.", 1)) from None
    render: Callable[[Prompt], str] = plain if base is None or not logprobs else templated(base)
    way = None
    if logprobs:
        # on an event loop of its own, because the caller may run on one
        with ThreadPoolExecutor(1) as thread:
            trial = Purse(who, budget, price, journal)
            way = thread.submit(lambda: asyncio.run(find_way(config, trial, render))).result()
    return ApiSuspect(config, Purse(who, budget, price, journal), way=way, render=render)
