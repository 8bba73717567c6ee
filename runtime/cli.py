"""``headway``: the command line. ``head`` and ``worker`` are the modules of that name, ``run`` is here, all else in ``commands``."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

import runtime

__all__ = ["main"]

USAGE = """usage: headway [--version] [--help] COMMAND ...

commands:
  head [OPTIONS]           start a head on this host (python -m runtime.head)
  worker [OPTIONS]         join this host to a cluster (python -m runtime.worker)
  run [--address HOST:PORT] SCRIPT [ARGS ...]
                           run a Python script; `train` and `lightning_ext` are ours in it, whatever it is called. An embedded
                           cluster is started before the script's own imports, unless there is one to join.
  status [--json]          nodes, runs, actors, and why something waits
  logs NAME|RUN [--rank N] [-f]
  stacks NAME|RUN [--rank N]
  stop [RUN|--all]         stop a job

`headway COMMAND --help` lists its options.
"""
# What a TorchTrainer's ranks want at least.
PRELOAD = ("torch", "torch._dynamo", "fsspec")
MODULES = {"head": "runtime.head", "worker": "runtime.worker"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        print(f"headway {runtime.__version__}")
        return 0
    if command in MODULES:
        sys.argv = [f"headway {command}", *arguments[1:]]
        runpy.run_module(MODULES[command], run_name="__main__", alter_sys=False)
        return 0
    if command in ("status", "logs", "stacks", "stop"):
        from runtime import commands

        return commands.main(command, arguments[1:])
    if command == "run":
        return _run(arguments[1:])
    print(f"{USAGE}\nheadway: {f'unknown command {command!r}' if command else 'a command is missing'}", file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> int:
    address = ""
    if len(arguments) > 1 and arguments[0] == "--address":
        address, arguments = arguments[1], arguments[2:]
    if not arguments or arguments[0].startswith("-"):
        print("usage: headway run [--address HOST:PORT] SCRIPT [ARGS ...]", file=sys.stderr)
        return 2
    script = arguments[0]
    if not os.path.isfile(script):
        print(f"headway run: there is no file {script!r}.", file=sys.stderr)
        return 2
    if address:
        os.environ["HEADWAY_ADDRESS"] = address  # also for what the script starts
    if os.environ.get("HEADWAY_ADDRESS") in (None, "", "local"):
        _prepare_cluster()
    sys.argv = arguments
    # As `python SCRIPT` does, and instead of this program's directory.
    sys.path[:0 if sys.flags.safe_path else 1] = [os.path.dirname(os.path.abspath(script))]
    try:
        runpy.run_path(script, run_name="__main__")
    except Exception as exc:  # noqa: BLE001 - the user's script; shown as Python would show it
        traceback.print_exception(type(exc), exc, _of_script(exc.__traceback__, script))
        return 1
    return 0


def _prepare_cluster() -> None:
    """While the script imports torch, so does the zygote; what is not used is gone with this process."""
    from runtime.client import init
    from runtime.local import begin_embedded

    init.prepare(begin_embedded(preload=PRELOAD if importlib.util.find_spec("torch") is not None else ()))


def _of_script(trace: TracebackType | None, script: str) -> TracebackType | None:
    """The traceback from the script's first frame on."""
    found = trace
    while found is not None and found.tb_frame.f_code.co_filename != script:
        found = found.tb_next
    return found or trace


if __name__ == "__main__":
    sys.exit(main())
