"""The guard beside LiteLLM's proxy, vllm-router and Portkey: one mock upstream, closed and open loop, alternating.

The guard has everything on: accounts, terms, six limits, ledger, journal, sketches, metrics, logs (guard_ours.py).
LiteLLM has a master key and no database (its Prisma engine is a download), so it does less: no budgets per key, no
spend log. vllm-router passes requests on and accounts for nothing; Portkey likewise. Each side is started afresh in
each round, warmed up, and measured alone:

  one        one connection, closed loop: latency, and what it adds to the mock's own
  many       32 connections, closed loop: requests a second, CPU per request of the gateway's processes
  streams    40 clients, 51 events 10 ms apart: CPU per event
  open       50, 200 and 500 requests a second whatever the answers do: latency from the time each was due
  memory     200,000 requests to one guard: resident memory after each 20,000
  overshoot  64 clients against a budget worth 32 replies: what was spent beyond it

    python benchmarks/guard_peers.py --install
    python benchmarks/guard.py [--rounds 3] [--publish]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import guard_load as load
import guard_ours as ours
import guard_peers as peers
from guard_peers import Side

STREAM = "/chunks=50,interval_ms=10,completion=50"  # with the finish, 51 events and [DONE]
EVENTS = 52
RATES = (50, 200, 500)
MANY, STREAMS, CLIENTS = 32, 40, 64
TARGETS = {
    "rps_over_litellm": 40.0,
    "added_p50_ms": 0.6,
    "added_p99_ms": 3.0,
    "cpu_us_per_event": 60.0,
    "memory_growth": 0.05,
    "two_workers_cpu": 1.1,
    "overshoot_usd": 0.0,
}
Start = Callable[[Path, int, str], AbstractContextManager[Side]]


@contextlib.contextmanager
def direct(folder: Path, upstream: int, mode: str = "") -> Iterator[Side]:
    """No gateway: what the mock and the load generator take by themselves."""
    yield Side("direct", load.Target(upstream, peers.BODY, f"{mode}/v1/chat/completions"))


def shared(workers: int) -> Start:
    @contextlib.contextmanager
    def start(folder: Path, upstream: int, mode: str = "") -> Iterator[Side]:
        with ours.redis(folder) as url, ours.guard(folder, upstream, mode, workers=workers, limits=url) as side:
            yield side

    return start


def sides(folder: Path) -> dict[str, Start]:
    return {
        "direct": direct,
        "guard": ours.guard,
        "litellm": lambda *a: peers.litellm(folder, *a),
        "guard_redis": shared(1),
        "vllm_router": lambda *a: peers.vllm_router(folder, *a),
        "guard_redis_2": shared(2),
        "portkey": lambda *a: peers.portkey(folder, *a),
    }


@contextlib.contextmanager
def running(start: Start, mode: str) -> Iterator[Side]:
    """A gateway in front of a mock of its own."""
    with tempfile.TemporaryDirectory() as work, peers.mock() as upstream, start(Path(work), upstream, mode) as side:
        yield side


def measure(side: Side, seconds: float) -> dict[str, float]:
    """Everything but streams of a gateway that is up."""
    found: dict[str, float] = {}
    load.closed(side.target, 8, seconds)  # warm-up: imports, caches, connections
    one = load.closed(side.target, 1, seconds)
    found |= {f"one_{key}": one[key] for key in ("p50_ms", "p99_ms", "p999_ms")}
    before = load.cpu_s(side.pid) if side.pid else 0.0
    many = load.closed(side.target, MANY, seconds * 2)
    if side.pid:
        found["cpu_us"] = round((load.cpu_s(side.pid) - before) / many["requests"] * 1e6, 1)
    found |= {"rps": many["rps"], "many_p99_ms": many["p99_ms"], "errors": many["errors"] + one["errors"]}
    for rate in RATES:
        result = load.apart("open", side.target, rate=rate, seconds=seconds)
        found |= {f"open{rate}_{key}": result[key] for key in ("p50_ms", "p99_ms", "p999_ms")}
        found[f"open{rate}_failed"] = result["errors"] + result["unanswered"]
    if side.pid:
        found["rss_mb"] = round(load.rss_mb(side.pid), 1)
    return found


def streams(side: Side, seconds: float) -> dict[str, float]:
    """CPU per event of 40 clients that stream one reply after another."""
    target = replace(side.target, body=side.target.body | {"stream": True})
    load.apart("closed", target, connections=STREAMS, seconds=1)
    before = load.cpu_s(side.pid) if side.pid else 0.0
    result = load.apart("closed", target, connections=STREAMS, seconds=seconds * 2)
    found: dict[str, float] = {
        "stream_errors": result["errors"] + result["unanswered"],
        "stream_p50_ms": result["p50_ms"],
    }
    if result["errors"] == 0 and side.pid:
        assert result["events"] >= (result["requests"] - result["errors"]) * (EVENTS - 1), result
        found["cpu_us_per_event"] = round((load.cpu_s(side.pid) - before) / result["events"] * 1e6, 1)
    return found


def memory(seconds: float) -> dict[str, Any]:
    """Resident megabytes after each tenth of 200,000 requests; growth from the second tenth on, as a share."""
    with tempfile.TemporaryDirectory() as name, peers.mock() as upstream, ours.guard(Path(name), upstream) as side:
        sizes = []
        for _ in range(10):
            load.apart("counted", side.target, connections=MANY, requests=20_000)
            sizes.append(round(load.rss_mb(side.pid), 1))
    return {"rss_mb": sizes, "growth": round(sizes[-1] / sizes[1] - 1, 4)}


def overshoot(folder: Path) -> dict[str, Any]:
    """USD spent beyond a budget worth 32 replies by 64 clients that ask 512 times, upstream taking 200 ms."""
    tokens_in, tokens_out = 12, 40
    each = (tokens_in * peers.PRICE["input_per_mtok"] + tokens_out * peers.PRICE["output_per_mtok"]) / 1e6
    budget = round(each * 32, 9)
    found: dict[str, Any] = {"budget_usd": budget}
    for name, start in (
        ("guard", lambda d, port, mode: ours.guard(d, port, mode, tier={"usd_lifetime": f"{budget:.9f}"})),
        ("litellm", lambda d, port, mode: peers.litellm(folder, d, port, mode, budget)),
    ):
        with tempfile.TemporaryDirectory() as work, peers.mock(Path(work) / "log") as upstream:
            with start(Path(work), upstream, "/delay_ms=200") as side:
                load.apart("counted", side.target, connections=CLIENTS, requests=512)
            served = len((Path(work) / "log").read_text().splitlines())
        found[name] = {"replies": served, "overshoot_usd": round(max(0.0, served * each - budget), 9)}
    return found


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds, and what each gateway adds to the mock's own latency."""
    table = {
        name: {
            key: round(statistics.median(r[name][key] for r in rounds if key in r[name]), 3) for key in rounds[0][name]
        }
        for name in rounds[0]
    }
    for name, row in table.items():
        if name != "direct":
            for key in [k for k in row if k.startswith(("one_p", "open")) and k.endswith("_ms")]:
                row[f"added_{key}"] = round(row[key] - table["direct"][key], 3)
    return table


def main(options: argparse.Namespace) -> int:
    versions = peers.versions(options.peers)
    every = sides(options.peers)
    chosen = [name for name in every if not options.sides or name in {"direct", "guard", *options.sides}]
    rounds: list[dict[str, dict[str, float]]] = []
    loads = []
    for number in range(options.rounds):
        order = chosen[number % len(chosen) :] + chosen[: number % len(chosen)]
        results: dict[str, dict[str, float]] = {}
        for name in order:
            with running(every[name], "") as side:
                results[name] = measure(side, options.seconds)
            with running(every[name], STREAM) as side:
                results[name] |= streams(side, options.seconds)
            loads.append(round(os.getloadavg()[0], 1))
            print(f"round {number + 1}: {name} {json.dumps(results[name])}", file=sys.stderr, flush=True)
        rounds.append({name: results[name] for name in chosen})
    table = summary(rounds)
    result = {
        "benchmark": "guard",
        "peers": versions,
        "medians": table,
        "rounds": options.rounds,
        "load": [min(loads), max(loads)],
        "memory": memory(options.seconds),
        "overshoot": overshoot(options.peers),
    }
    result |= judged(result, rounds)
    if options.publish:
        from guard_table import publish

        publish(result)
    print(json.dumps(result))
    return 0 if result["met"] else 1


def judged(result: dict[str, Any], rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Ratios beside their targets; a target whose side was not measured is not met."""
    guard, table = result["medians"]["guard"], result["medians"]
    ratios = {
        "added_p50_ms": guard["added_one_p50_ms"],
        "added_p99_ms": guard["added_one_p99_ms"],
        "cpu_us_per_event": guard.get("cpu_us_per_event"),
        "memory_growth": result["memory"]["growth"],
        "overshoot_usd": result["overshoot"]["guard"]["overshoot_usd"],
    }
    if "litellm" in table:
        each = [r["guard"]["rps"] / r["litellm"]["rps"] for r in rounds]
        ratios["rps_over_litellm"] = round(statistics.median(each), 1)
        ratios["rps_over_litellm_range"] = [round(min(each), 1), round(max(each), 1)]
    if "guard_redis_2" in table and "guard_redis" in table:
        ratios["two_workers_cpu"] = round(table["guard_redis_2"]["cpu_us"] / table["guard_redis"]["cpu_us"], 3)
    missed = [
        name
        for name, target in TARGETS.items()
        if ratios.get(name) is None or (ratios[name] < target if name == "rps_over_litellm" else ratios[name] > target)
    ]
    return {"ratios": ratios, "targets": TARGETS, "missed": missed, "met": not missed}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each loop; a third as long for a quick look")
    parser.add_argument("--sides", nargs="*", default=[], help="only these, direct and guard")
    parser.add_argument("--peers", type=Path, default=peers.PEERS, help="where guard_peers.py installed them")
    parser.add_argument("--publish", action="store_true", help="write results/guard.json and the table of its page")
    sys.exit(main(parser.parse_args()))
