"""`spiritsafe teachers run|probe`: serve local weights, or ask a served model what it offers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from spiritsafe.cli._output import Json, print_json
from spiritsafe.cli._watermark_keys import PassphraseEnv, PassphraseFile
from spiritsafe.errors import BadInput

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    teachers = typer.Typer(help="Teachers: serve local weights, or probe a served model.", no_args_is_help=True)
    app.add_typer(teachers, name="teachers")

    @teachers.command(epilog="Example: spiritsafe teachers run model.gguf --port 8001 --name smollm2-135m")
    def run(
        model: Annotated[str, typer.Argument(help="A GGUF file, a Hugging Face folder, or a hub id.")],
        host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8001,
        name: Annotated[
            str | None, typer.Option(help="Model name to serve under; the file's name unless given.")
        ] = None,
        api_key_env: Annotated[
            str | None, typer.Option(help="Environment variable that holds the key clients must send.")
        ] = None,
        max_batch: Annotated[int, typer.Option(min=1, help="Requests generated together.")] = 32,
        max_logprobs: Annotated[int, typer.Option(min=0, help="Most alternatives a request may ask for.")] = 64,
        dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
        log: Annotated[
            Path | None, typer.Option(help="Append answered requests here as JSONL, without prompts.")
        ] = None,
        watermark: Annotated[
            Path | None, typer.Option(metavar="KEYS.json", help="Mark every reply with this key set's current epoch.")
        ] = None,
        greedy: Annotated[
            str, typer.Option(help="What becomes of requests at temperature 0 under --watermark: kgw, raise or refuse.")
        ] = "kgw",
        passphrase_env: PassphraseEnv = None,
        passphrase_file: PassphraseFile = None,
    ) -> None:
        """Put local weights behind an OpenAI-compatible API."""
        from spiritsafe.teachers import serve_local

        key = None
        if api_key_env is not None:
            key = os.environ.get(api_key_env)
            if not key:
                raise BadInput(f"--api-key-env {api_key_env}: that environment variable is not set")
        marks = None
        if watermark is not None:
            from spiritsafe.config import parse_config
            from spiritsafe.watermark._marking import MarkerConfig

            given = {"keys": str(watermark), "greedy": greedy, "passphrase_env": passphrase_env}
            secret = {"passphrase_file": None if passphrase_file is None else str(passphrase_file)}
            marks = parse_config(given | secret, MarkerConfig, where="--watermark")
        serve_local(
            model,
            host=host,
            port=port,
            model_name=name,
            api_key=key,
            max_logprobs=max_logprobs,
            max_batch=max_batch,
            dtype=dtype,
            log=log,
            watermark=marks,
            on_ready=lambda base_url, served: typer.echo(f"serving {served} at {base_url}", err=True),
        )

    @teachers.command(epilog="Example: spiritsafe teachers probe http://127.0.0.1:8001/v1 --model smollm2-135m")
    def probe(
        base_url: Annotated[str, typer.Argument(help="The API's base URL, usually ending in /v1.")],
        model: Annotated[str, typer.Option("--model", help="Model name to ask for.")],
        api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
        as_json: Json = False,
    ) -> None:
        """Find out what a teacher offers, with a few tiny requests."""
        import asyncio

        from spiritsafe.teachers import TeacherConfig
        from spiritsafe.teachers import probe as probe_teacher

        report = asyncio.run(probe_teacher(TeacherConfig(model=model, base_url=base_url, api_key_env=api_key_env)))
        if as_json:
            print_json(report.to_dict())
        else:
            print(report.render())
