"""``python -m runtime.head``: options, signals, exit codes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

from runtime.errors import ConnectError, HeadwayError
from runtime.head.port_holder import find_port_holder
from runtime.head.server import HeadServer, is_loopback
from runtime.limits import LIMITS
from runtime.wire.address import format_tcp
from runtime.wire.auth import default_token_path
from runtime.wire.peer import load_or_create_token

__all__ = ["main"]

DEFAULT_PORT = 6480
RECORD = Path("~/.headway/head.json")  # how address="auto" and the command line find a running head of this user


def main(argv: list[str] | None = None) -> int:
    """Run a head until SIGINT (130) or SIGTERM (0). Returns the exit code; bad options end with 2."""
    options = _parse(argv)
    if options.print_limits:
        print(LIMITS.table())
        return 0
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s head %(levelname)s %(message)s")
    try:
        token_path = Path(options.token_file or default_token_path()).expanduser().absolute()
        token = load_or_create_token(token_path)
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(_run(options, token, token_path))
    except (HeadwayError, OSError) as exc:
        print(f"headway head: {_explain(exc, options)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # a second Ctrl-C does not wait for the end of the jobs
        return 130


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runtime.head", description="The head of a Headway cluster.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s: this host only)")
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, help="port to listen on (default %(default)s; 0: any free one)")
    parser.add_argument("--address-file", type=Path, metavar="FILE", help="write HOST:PORT here once the head listens")
    parser.add_argument("--token-file", metavar="FILE", help="the token, made if missing (default HEADWAY_TOKEN_FILE or ~/.headway/token)")
    parser.add_argument("--print-limits", action="store_true", help="print every time-out, size and count, and exit")
    return parser.parse_args(argv)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: it must be a number from 0 to 65535")
    return int(text)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not on this platform
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def _run(options: argparse.Namespace, token: bytes, token_path: Path) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    server = HeadServer(addresses=[format_tcp(options.host, options.port)], token=token, embedded=False)
    await server.start()
    try:
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
            loop.add_signal_handler(number, _resolve, ended, code)
        address = _advertised(server.addresses[0])
        _write_record(address, token_path)
        if options.address_file is not None:
            _write(options.address_file, address + "\n")
        if not is_loopback(server.addresses[0]):
            print("headway head: other hosts can reach this address; connections are authenticated, but not encrypted.", file=sys.stderr)
        print(f"headway head at {address} (token: {token_path}); join a node: python -m runtime.worker --head {address}; "
              f"run a script: HEADWAY_ADDRESS={address} python SCRIPT", file=sys.stderr, flush=True)
        return await ended
    finally:
        loop.remove_signal_handler(signal.SIGINT)  # from here on a second signal ends at once
        loop.remove_signal_handler(signal.SIGTERM)
        await server.close()
        _remove_record()


def _resolve(ended: asyncio.Future[int], code: int) -> None:
    if not ended.done():
        ended.set_result(code)


def _advertised(address: str) -> str:
    """``address`` as others dial it: a listener on all interfaces is known by this host's name."""
    host, _, port = address.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in ("0.0.0.0", "[::]") else address


def _write(path: Path, text: str) -> None:
    """Write atomically, readable by this user only: who waits for the file never sees half of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _write_record(address: str, token_path: Path) -> None:
    record = {"address": address, "token_file": str(token_path), "pid": os.getpid()}
    if (other := _recorded_head()) is not None:
        logging.warning("%s names the head with pid %s, which runs: address=\"auto\" goes there", RECORD, other)
        return
    try:
        _write(RECORD.expanduser(), json.dumps(record) + "\n")
    except OSError as exc:
        logging.warning("cannot write %s (%s): address=\"auto\" will not find this head", RECORD, exc)


def _recorded_head() -> int | None:
    """The pid of a head of this user that is running and is the one that is found."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        pid = int(json.loads(RECORD.expanduser().read_text(encoding="utf-8"))["pid"])
        if pid != os.getpid() and b"head" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def _remove_record() -> None:
    """Unless a later head wrote its own."""
    path = RECORD.expanduser()
    with contextlib.suppress(OSError, ValueError, KeyError):
        if json.loads(path.read_text(encoding="utf-8"))["pid"] == os.getpid():
            path.unlink()


def _explain(exc: BaseException, options: argparse.Namespace) -> str:
    if not isinstance(exc, ConnectError) or exc.errno != errno.EADDRINUSE:
        return str(exc)
    holder = find_port_holder(options.port)
    return (f"port {options.port} of {options.host} is in use{f' by {holder}' if holder else ''}: stop that, or choose another one with "
            "--port (0: any free one).")


if __name__ == "__main__":
    sys.exit(main())
