"""The collector against `asyncio.gather` over the stock `openai` client: requests a second of CPU time.

A mock API in a process of its own answers after 20 ms. Both sides send the same prompts with 64 requests in flight and
are measured from the first request to the last answer in hand, imports and a warm-up excluded; ours includes the
durable store, the budget and `exchanges.parquet`. Rounds alternate; medians are reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

REQUESTS, CONCURRENCY, ROUNDS, LATENCY_S = 3000, 64, 5, 0.020
TARGET = 5.0
PEER = "3.54.0"


async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    """The mock: one raw ASGI function, so that it costs the two cores as little as may be."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(LATENCY_S)
    body = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": "mock",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "word " * 40}}
            ],
            "usage": {"prompt_tokens": 12, "completion_tokens": 40, "total_tokens": 52},
        }
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve() -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets=None) -> None:  # type: ignore[no-untyped-def]
            await super().startup(sockets)
            print(self.servers[0].sockets[0].getsockname()[1], flush=True)

    Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off")).run()


def texts(count: int) -> list[str]:
    return [f"In one or two sentences: what does function number {i} do?" for i in range(count)]


def ours(url: str) -> None:
    import pyarrow.parquet  # noqa: F401 — imports are not what is measured

    from spiritsafe.collect import CollectConfig, collect
    from spiritsafe.records import Message, Prompt
    from spiritsafe.runs import Run
    from spiritsafe.spend import Price
    from spiritsafe.teachers import TeacherConfig

    price = Price.model_validate({"input_per_mtok": 0.15, "output_per_mtok": 0.6})
    teacher = TeacherConfig(base_url=url, model="mock", price=price)
    config = CollectConfig(budget_usd=100, max_tokens=64, logprobs=0, concurrency=CONCURRENCY, reuse=False)
    with tempfile.TemporaryDirectory() as folder:
        for name, count in (("warm-up", 100), ("run", REQUESTS)):
            prompts = [Prompt((Message("user", text),)) for text in texts(count)]
            run = Run.open(Path(folder) / name)
            with measured(count) as report:
                summary = collect(run, teacher, prompts, config)
            assert summary.exchanges == count
    print(json.dumps(report))


def peer(url: str) -> None:
    import openai

    async def ask(count: int) -> None:
        client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
        slots = asyncio.Semaphore(CONCURRENCY)

        async def one(text: str) -> str:
            async with slots:
                answer = await client.chat.completions.create(
                    model="mock", messages=[{"role": "user", "content": text}], max_tokens=64, temperature=1.0, seed=1
                )
            return answer.choices[0].message.content or ""

        answers = await asyncio.gather(*(one(text) for text in texts(count)))
        await client.close()
        assert len(answers) == count
        assert all(answers)

    for count in (100, REQUESTS):
        with measured(count) as report:
            asyncio.run(ask(count))
    print(json.dumps(report))


@contextmanager
def measured(count: int) -> Iterator[dict[str, float]]:
    report: dict[str, float] = {}
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    yield report
    after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - started
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    report |= {"per_s": count / seconds, "per_cpu_s": count / cpu, "cpu_us": cpu / count * 1e6}


def main() -> int:
    found = version("openai")
    assert found == PEER, f"openai {found} is installed, but the numbers are for {PEER}"
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        rounds: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
        for _ in range(ROUNDS):
            for side, results in rounds.items():
                output = subprocess.run(
                    [sys.executable, __file__, "--side", side, url], stdout=subprocess.PIPE, text=True, check=True
                ).stdout
                results.append(json.loads(output.splitlines()[-1]))
    finally:
        server.terminate()
        server.wait(10)
    median = {
        side: {key: round(statistics.median(r[key] for r in results), 1) for key in results[0]}
        for side, results in rounds.items()
    }
    ratios = [a["per_cpu_s"] / b["per_cpu_s"] for a, b in zip(rounds["ours"], rounds["peer"], strict=True)]
    ratio = statistics.median(ratios)
    print(
        json.dumps(
            {
                "benchmark": "collector",
                "peer": f"openai {found}",
                "unit": "requests per CPU-second",
                "ours": median["ours"],
                "theirs": median["peer"],
                "ratio": round(ratio, 2),
                "range": [round(min(ratios), 2), round(max(ratios), 2)],
                "target": TARGET,
                "met": ratio >= TARGET,
                "requests": REQUESTS,
                "concurrency": CONCURRENCY,
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "URL"))
    options = parser.parse_args()
    if options.serve:
        serve()
    elif options.side:
        {"ours": ours, "peer": peer}[options.side[0]](options.side[1])
    else:
        sys.exit(main())
