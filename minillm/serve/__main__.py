"""The command: `python -m minillm.serve --weights PATH` answers at http://127.0.0.1:8000, /v1 for programs and / for
people."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minillm import cli
from minillm.guard import files, screen
from minillm.guard.screen import note
from minillm.loading import load
from minillm.parallel import launch

DEMO_NAME = "demo"
LOCAL = ("localhost", "127.0.0.1", "::1")


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    options = {**cli.model_options(arguments), **launch.options(arguments)}
    if (code := launch.elsewhere(arguments, "serve", argv, lambda: load(**options))) is not None:
        return code
    try:
        from minillm.serve import app, connection, keys
        from minillm.serve.service import Service
    except ModuleNotFoundError as error:
        raise ValueError(f"the server needs {error.name}: pip install -e '.[serve]' in the clone") from None
    known = keys.load(files.text_file("--api-keys", arguments.api_keys)) if arguments.api_keys else keys.Keys()
    settings = _settings(arguments, bool(known))
    listener = _listen(arguments.host, arguments.port)
    catalog = _catalog(arguments)
    gc.collect()
    gc.freeze()  # what is there by now stays: to look through it again and again would stop all threads for 0.1 s each
    service = Service(catalog, known, settings)
    server = connection.Server(app.build(service), service, arguments.host, arguments.port)
    _say(arguments, listener, service)
    try:
        asyncio.run(server.serve([listener]))
    finally:
        service.close()
    return cli.EXIT_INTERRUPTED if server.stopped_by == signal.SIGINT else 0


def _catalog(arguments: argparse.Namespace) -> Any:
    """All that are to be served: one, which is loaded now, or those of --models."""
    from minillm.serve.models import sources
    from minillm.serve.models.catalog import Catalog, Model

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    options = {**cli.model_options(arguments), **launch.options(arguments)}
    if arguments.models is not None:
        del options["adapter"]  # which is of one checkpoint
    names = tuple(arguments.served_model_name or [arguments.weights or DEMO_NAME])
    if both := sorted({*names} & {*named(options.get("adapter"))}):
        raise ValueError(f"--adapter {both[0]} has the name of the model itself; give it another")
    base = sources.Source(
        names=names,
        options=options,
        cache_memory=arguments.cache_memory,
        max_batch=arguments.max_batch,
        max_waiting=arguments.max_waiting,
        deterministic=arguments.deterministic,
        template=sources.template(arguments.chat_template, "--chat-template") if arguments.chat_template else None,
        style=arguments.tool_style,
    )
    if arguments.models is None:
        served = base.served(cli.progress_bar("loading"))
        return Catalog([Model.of(each) for each in (served, *served.adapters())])
    most = sources.bound(arguments.model_memory, arguments.device)
    return Catalog(*sources.models(Path(arguments.models), base, most), most)


def named(adapter: Any) -> Sequence[str]:
    """The names of adapters that requests choose from."""
    return tuple(adapter) if isinstance(adapter, Mapping) else ()


def _settings(arguments: argparse.Namespace, has_keys: bool) -> Any:
    from minillm.serve.doors import is_local
    from minillm.serve.settings import Settings

    local = is_local(arguments.host)
    if not local and not has_keys:
        note(f"{arguments.host} is open to others, and no key is asked for; give --api-keys FILE")
    names = ("drain_timeout", "request_timeout", "max_batch", "max_waiting", "metrics_prefix", "max_body")
    given = {name: getattr(arguments, name) for name in names}
    is_demo = arguments.weights is None and arguments.models is None
    given["fold_system"] = arguments.fold_system or is_demo  # the demo knows users only
    hosts = tuple(dict.fromkeys((*LOCAL, arguments.host))) if local and not has_keys else ()
    return Settings(**given, hosts=hosts, origins=tuple(arguments.allow_origin))


def _listen(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises ValueError where there is none."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=kind, backlog=512)
    except socket.gaierror as error:
        reason = error.strerror
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)  # without the address, which follows
    except OverflowError as error:
        reason = str(error)
    raise ValueError(f"cannot listen at {host}:{port}: {reason}; choose another --host or --port")


def _say(arguments: argparse.Namespace, listener: socket.socket, service: Any) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    screen.release()
    cards = [each.card for each in service.models.all]
    names = ", ".join(f"{', '.join(each.names)} (context {each.room:,})" for each in cards)
    note(f"serving {names} at http://{shown}:{port}; programs use http://{shown}:{port}/v1")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser("serve", "Serve a checkpoint: the APIs of OpenAI, Anthropic and Ollama, and a page to chat at.")
    cli.add_model_arguments(parser, several=True)
    launch.add_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 is any that is free (default 8000)")
    several = (
        "serve all checkpoints of a folder, or those that a YAML file lists, loaded when asked for; see docs/serve.md"
    )
    parser.add_argument("--models", metavar="PATH", help=several)
    name = "what clients call the model (default: what --weights says)"
    parser.add_argument("--served-model-name", metavar="NAME", nargs="+", help=name)
    _add_model(parser)
    _add_access(parser)
    _add_limits(parser)
    arguments = parser.parse_args(argv)
    for flag in ("max_batch", "max_waiting", "threads", "max_body"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            parser.error(f"--{flag.replace('_', '-')} is {value}, it must be at least 1")
    for flag in ("drain_timeout", "request_timeout"):
        if getattr(arguments, flag) < 0:
            parser.error(f"--{flag.replace('_', '-')} is {getattr(arguments, flag)}, it must be at least 0")
    one = [
        each
        for each in ("weights", "revision", "adapter", "served_model_name", "ranks", "stages", "layers")
        if getattr(arguments, each) is not None
    ]
    if arguments.models is not None and one:
        parser.error(f"--models and --{one[0].replace('_', '-')} exclude each other")
    if arguments.models is None and arguments.model_memory is not None:
        parser.error("--model-memory goes with --models")
    if not 0 <= arguments.port < 2**16:
        parser.error(f"--port is {arguments.port}, it must be from 0 to {2**16 - 1}")
    return arguments


def _add_model(parser: argparse.ArgumentParser) -> None:
    bound = "for all of --models that are loaded: bytes, or a share of what is left (default 0.8)"
    parser.add_argument("--model-memory", metavar="X", type=float, help=bound)
    memory = "for keys and values: bytes, or a share of what is left (default 0.5; with --models: of that bound, 0.1)"
    parser.add_argument("--cache-memory", metavar="X", type=float, help=memory)
    parser.add_argument("--threads", metavar="N", type=int, help="of a CPU (default: all)")
    exact = "each request by itself, bit for bit as if alone, and slower"
    parser.add_argument("--deterministic", action="store_true", help=exact)
    parser.add_argument("--chat-template", metavar="FILE", help="a Jinja template in place of the checkpoint's")
    style = "how the model writes calls and reasoning (default: by its chat template; see docs/serve.md)"
    parser.add_argument("--tool-style", metavar="NAME", help=style)
    fold = "put system messages in front of the first user's, for templates that refuse them"
    parser.add_argument("--fold-system", action="store_true", help=fold)


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--api-keys", metavar="FILE", help="YAML of keys and their limits; see docs/serve.md")
    origin = "a web page's origin that may ask, such as http://localhost:3000 (repeatable; default: none)"
    parser.add_argument("--allow-origin", metavar="URL", action="append", default=[], help=origin)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-batch", metavar="N", type=int, default=32, help="requests at a time (default 32)")
    waiting = "requests that may wait; more are told to come again (default 1000)"
    parser.add_argument("--max-waiting", metavar="N", type=int, default=1000, help=waiting)
    parser.add_argument("--max-body", metavar="BYTES", type=int, default=16_000_000, help="default 16000000")
    seconds = "seconds until a request is ended (default 3600)"
    parser.add_argument("--request-timeout", metavar="S", type=float, default=3600.0, help=seconds)
    drain = "seconds that requests have once the server is told to stop (default 30)"
    parser.add_argument("--drain-timeout", metavar="S", type=float, default=30.0, help=drain)
    prefix = "of metrics (default minillm; vllm makes its dashboards work)"
    parser.add_argument("--metrics-prefix", metavar="NAME", default="minillm", help=prefix)


if __name__ == "__main__":
    sys.exit(main())
