"""`spiritsafe watermark …`: keys, detect, trace, attack, bench."""

from __future__ import annotations

import typer

from spiritsafe.cli import _watermark_attack, _watermark_bench, _watermark_detect, _watermark_keys, _watermark_trace

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    watermark = typer.Typer(help="Watermarks: keys, detection, tracing, attacks.", no_args_is_help=True)
    app.add_typer(watermark, name="watermark")
    _watermark_keys.register(watermark)
    _watermark_detect.register(watermark)
    _watermark_trace.register(watermark)
    _watermark_attack.register(watermark)
    _watermark_bench.register(watermark)
