"""The verb that serves models: serve."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from lora_cot.commands.options import (
    EngineKeyFileOption,
    EngineModelOption,
    EngineOption,
    ModelArgument,
    QuantizationOption,
    server_of,
)
from lora_cot.errors import Problem, RunError

KvGibOption = Annotated[
    float | None,
    typer.Option(min=0.001, help="GiB that keys and values may take, else rows wait; 0.75 of what is free if not given."),
]
NEEDED = ("fastapi", "prometheus_client", "uvicorn")


def serve(
    model: ModelArgument,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="A further run or adapter of the same base; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call MODEL; its run's name if not given.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    engine: EngineOption = None,
    engine_model: EngineModelOption = None,
    engine_key_file: EngineKeyFileOption = None,
    api_key_file: Annotated[Path | None, typer.Option(help="One line; clients must send it.")] = None,
    quantization: QuantizationOption = "auto",
    rows: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Candidates that decode at once, of all requests; 64 if not given.")
    ] = None,
    kv_gib: KvGibOption = None,
    queue_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that all requests together may still take; beyond, 503.")
    ] = 2_000_000,
    candidates: Annotated[int, typer.Option(min=1, max=64, help="Of a request, at most.")] = 16,
    context: Annotated[int | None, typer.Option(min=16, help="Tokens of prompt and answer; the model's if not given.")] = None,
    image_host: Annotated[
        list[str] | None, typer.Option(help="A host that images may be fetched from; repeatable; none if not given.")
    ] = None,
    drain_seconds: Annotated[float, typer.Option(min=0, help="For running requests, when told to end.")] = 30.0,
) -> None:
    """Serve a model as OpenAI's API does, with searches inside."""
    _see_extra()
    adapters = _named(adapter or [])
    server = server_of(engine, engine_model, engine_key_file)
    from lora_cot.engines.chat import read_key
    from lora_cot.serving.fetching import Fetching
    from lora_cot.serving.limits import Limits
    from lora_cot.serving.run import serve as run

    key = read_key(api_key_file) if api_key_file else None  # before a model is loaded for nothing
    bounds = {"max_tokens": queue_tokens, "max_request_tokens": queue_tokens // 2}
    fetching = Fetching(frozenset(image_host or ()))
    limits = Limits(**bounds, max_candidates=candidates, fetching=fetching, drain_seconds=drain_seconds)
    run(
        model,
        name,
        adapters,
        host=host,
        port=port,
        key=key,
        quantization=quantization,  # type: ignore[arg-type]
        server=server,
        rows=rows,
        kv_gib=kv_gib,
        context=context,
        limits=limits,
    )


def _see_extra() -> None:
    """See that what the server needs is installed.

    Raises:
        RunError: it is not.
    """
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise RunError(Problem("serve", f"the server needs {', '.join(missing)}", "pip install 'lora_cot[serve]'"))


def _named(adapters: list[str]) -> dict[str, str]:
    """Folders by name.

    Raises:
        RunError: one without a name, or a name that is given twice.
    """
    found: dict[str, str] = {}
    for one in adapters:
        name, _, path = one.partition("=")
        if not name or not path or name in found:
            raise RunError(Problem("--adapter", f"'{one}' names nothing new", "expected NAME=PATH, each name once"))
        found[name] = path
    return found
