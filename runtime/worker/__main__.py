"""``python -m runtime.worker --head HOST:PORT``: join this host to a cluster."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import ArgumentError, HeadwayError
from runtime.wire.address import parse_address
from runtime.wire.auth import load_token
from runtime.worker.daemon import WorkerDaemon
from runtime.worker.gpus import inventory
from runtime.worker.session_dir import make_session_dir

__all__ = ["main"]

NAME_CHARS = "letters, digits, '.', '_' and '-', at most 128 of them, beginning with a letter or digit"
DEFAULT_PRELOAD = ("torch", "torch._dynamo")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker daemon until it is told to end. Returns: the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="headway worker: %(message)s", stream=sys.stderr)
    try:
        import uvloop

        loop_factory = uvloop.new_event_loop
    except ImportError:
        loop_factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_serve(options))


async def _serve(options: argparse.Namespace) -> int:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    signals: list[int] = []

    def on_signal(number: int) -> None:
        signals.append(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    session_dir = None
    try:
        session_dir = make_session_dir()
        daemon = _daemon(options, session_dir)
        serving = asyncio.create_task(_run(daemon), name="worker daemon")
        stopping = asyncio.create_task(stop.wait(), name="wait for a signal")
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            print("headway worker: ending", file=sys.stderr, flush=True)
        serving.cancel()
        stopping.cancel()
        ended, _ = await asyncio.gather(serving, stopping, return_exceptions=True)
        await daemon.close("its worker daemon was told to end")
        if isinstance(ended, Exception):
            raise ended
        if isinstance(ended, str):
            print(f"headway worker: {ended}", file=sys.stderr, flush=True)
            return 1
    except (HeadwayError, OSError) as exc:
        print(f"headway worker: {exc}", file=sys.stderr, flush=True)
        return 1
    finally:
        if session_dir is not None:
            shutil.rmtree(session_dir, ignore_errors=True)
    return 130 if signals[:1] == [signal.SIGINT] else 0


async def _run(daemon: WorkerDaemon) -> str:
    await daemon.start()
    facts = daemon.facts
    resources = ", ".join(f"{value:g} {name}" for name, value in facts.resources.items())
    print(f"headway worker: node {facts.name} at {facts.host} ({facts.interface}) joined with {resources}. Ctrl-C ends it.",
          file=sys.stderr, flush=True)
    return await daemon.run_until_closed()


def _daemon(options: argparse.Namespace, session_dir: Path) -> WorkerDaemon:
    gpus, simulated = inventory(options.num_gpus)
    num_cpus = options.num_cpus if options.num_cpus is not None else len(os.sched_getaffinity(0))
    resources = {"CPU": float(num_cpus), **({"GPU": float(len(gpus))} if gpus else {}), **options.resources}
    preload = options.preload
    if preload is None:
        preload = DEFAULT_PRELOAD if importlib.util.find_spec("torch") is not None else ()
    return WorkerDaemon(
        head_address=options.head, token=load_token(options.token_file), name=options.name, resources=resources,
        labels=dict(options.labels), gpus=gpus, simulated_gpus=simulated, session_dir=session_dir, preload=preload,
        use_zygote=not options.no_zygote)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime.worker", description="Join this host to a Headway cluster.")
    parser.add_argument("--head", required=True, type=_address, metavar="HOST:PORT", help="address that the head printed at its start")
    parser.add_argument("--name", type=_name, help="name of this node, unique in the cluster (default: the host's)")
    parser.add_argument("--num-cpus", type=_count, help="CPUs to offer (default: those that this process may use)")
    parser.add_argument("--num-gpus", type=_count, help="GPUs to offer (default: all; simulated on a host without any)")
    parser.add_argument("--resources", type=_resources, default={}, metavar="JSON", help='further resources, like {"disk": 2}')
    parser.add_argument("--labels", type=_label, action="append", default=[], metavar="KEY=VALUE", help="may be given several times")
    parser.add_argument("--token-file", help="token of the cluster (default: HEADWAY_TOKEN_FILE, else ~/.headway/token)")
    parser.add_argument("--preload", type=_modules, metavar="MODULES", help="what actors find imported, comma-separated "
                        f"(default: {','.join(DEFAULT_PRELOAD)} if torch is installed; '' for nothing)")
    parser.add_argument("--no-zygote", action="store_true", help="start each actor in a fresh interpreter")
    return parser


def _address(text: str) -> str:
    try:
        parse_address(text)
    except ArgumentError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text


def _name(text: str) -> str:
    plain = text.replace(".", "").replace("_", "").replace("-", "")
    if not (text.isascii() and plain.isalnum() and text[0].isalnum() and len(text) <= 128):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: use {NAME_CHARS}")
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 0")
    return int(text)


def _resources(text: str) -> dict[str, float]:
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must be a JSON object, like {{\"disk\": 2}}")
    for name, value in found.items():
        if name in ("CPU", "GPU"):
            raise argparse.ArgumentTypeError(f"give {name} by --num-{name.lower()}s")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise argparse.ArgumentTypeError(f"resource {name!r} is {value!r}: it must be a number of at least 0")
    return {name: float(value) for name, value in found.items()}


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE")
    return key, value


def _modules(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    sys.exit(main())
