"""Tailing of log files: lines, rates, harmless text, with and without inotify."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.limits import LIMITS
from runtime.worker.logs import CHUNK_BYTES, LogBatch, LogTails, printable, tail_of


@pytest.mark.parametrize(("line", "text"), [
    (b"plain", "plain"), (b"tab\there", "tab\there"), (b"\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"), (b"\x1b[2J", "\\x1b[2J"),
    (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"), (b" 10%\r 50%\r100%", "100%"), (b"dos\r", "dos"), (b"a\x00b", "a\\x00b"),
    (b"\xff\xfe", "\\xff\\xfe"), ("ü\u2028[rank 0]".encode(), "ü\\x2028[rank 0]"), (b"\xc2\x9b2J", "\\x9b2J"), (b"", ""),
])
def test_no_line_moves_the_cursor_or_fakes_another(line: bytes, text: str) -> None:
    assert printable(line) == text


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail_of(path, 50) == ()
    path.write_bytes(b"")
    assert tail_of(path, 50) == ()
    path.write_text("".join(f"line {i}\n" for i in range(100)) + "unfinished")
    assert tail_of(path, 3) == ("line 98", "line 99", "unfinished")
    path.write_bytes(b"x" * 100_000 + b"\n" + b"y" * 8000 + b"\n" + b"z" * 100)
    assert [len(line) for line in tail_of(path, 50)] == [8000, 100]


class _Sink:
    def __init__(self) -> None:
        self.batches: list[LogBatch] = []
        self.takes = True

    def __call__(self, batch: LogBatch) -> bool:
        if self.takes:
            self.batches.append(batch)
        return self.takes

    @property
    def lines(self) -> list[str]:
        return [line for batch in self.batches for line in batch.lines]

    @property
    def dropped(self) -> int:
        return sum(batch.dropped for batch in self.batches)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("use_inotify", [True, False])
@pytest.mark.asyncio
async def test_lines_are_sent_when_they_are_written(tmp_path: Path, use_inotify: bool) -> None:
    tails, sinks = LogTails(tmp_path, LIMITS, use_inotify=use_inotify), (_Sink(), _Sink())
    for i, sink in enumerate(sinks):
        (tmp_path / f"{i}.log").write_text(f"before {i}\n")
        tails.follow(str(tmp_path / f"{i}.log"), sink)
    await _until(lambda: all(sink.lines for sink in sinks))
    with (tmp_path / "1.log").open("a") as file:
        file.write("part")
        file.flush()
        await _until(lambda: sinks[0].lines == ["before 0"])
        file.write("ial\nnext\nopen end")
        file.flush()
        await _until(lambda: len(sinks[1].lines) == 3)
    await tails.finish(str(tmp_path / "1.log"))
    assert sinks[1].lines == ["before 1", "partial", "next", "open end"]
    assert sinks[0].lines == ["before 0"]
    await tails.finish(str(tmp_path / "1.log"))  # again: nothing
    tails.close()


@pytest.mark.asyncio
async def test_what_is_over_the_rate_is_counted_and_not_sent(tmp_path: Path) -> None:
    limits = dataclasses.replace(LIMITS, log_stream_bytes_per_s=4 * CHUNK_BYTES, log_flush_s=20.0)
    path, sink = tmp_path / "log", _Sink()
    line = "x" * 99
    path.write_text(f"{line}\n" * 50_000)  # 5 MB
    tails = LogTails(tmp_path, limits)
    tails.follow(str(path), sink)
    await tails.finish(str(path))
    assert sink.dropped > 30_000
    assert abs(len(sink.lines) + sink.dropped - 50_000) <= 2 * len(sink.batches)  # a line cut by a dropped chunk counts twice or not
    tails.close()


@pytest.mark.asyncio
async def test_what_nobody_took_is_counted_in_the_next_batch(tmp_path: Path) -> None:
    path, sink = tmp_path / "log", _Sink()
    path.write_text("one\ntwo\n")
    tails = LogTails(tmp_path, LIMITS)
    sink.takes = False
    tails.follow(str(path), sink)
    await asyncio.sleep(0.1)
    sink.takes = True
    with path.open("a") as file:
        file.write("three\n")
    await _until(lambda: bool(sink.batches))
    assert sink.batches == [LogBatch(("three",), 2)]
    tails.close()


@pytest.mark.asyncio
async def test_a_line_without_end_is_sent_in_pieces_and_a_flood_of_empty_lines_fits_a_message(tmp_path: Path) -> None:
    path, sink = tmp_path / "log", _Sink()
    path.write_bytes(b"a" * 200_000 + b"\n" * 70_000)
    tails = LogTails(tmp_path, LIMITS)
    tails.follow(str(path), sink)
    await tails.finish(str(path))
    assert "".join(sink.lines) == "a" * 200_000
    assert max(map(len, sink.lines)) <= LIMITS.log_line_bytes
    assert max(len(batch.lines) for batch in sink.batches) <= LIMITS.max_array_len
    tails.close()
