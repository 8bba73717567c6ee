"""The handshake without a socket, and the token file."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime.wire.auth as auth
from runtime.errors import AuthenticationError, HeadwayError, ProtocolError, VersionMismatchError
from runtime.wire.auth import Acceptor, Dialler, Handshake, Identity, default_token_path, load_or_create_token, load_token
from runtime.wire.codec import decode, encode, unpacker
from runtime.wire.messages import Challenge, Failed, Hello, Message, Ok, Proof, Welcome

TOKEN, OTHER = b"\x01" * 32, b"\x02" * 32
DRIVER, HEAD = Identity("driver", "d"), Identity("head", "h")


def body(message: Message) -> bytes:
    return encode(message, 0, 0)


def message(data: bytes | None) -> Message:
    assert data is not None
    return decode(data, unpacker()).message


def answer(handshake: Handshake, data: bytes) -> bytes:
    reply = handshake.receive(data)
    assert reply is not None
    return reply


def record(token_of_dialler: bytes = TOKEN, token_of_listener: bytes = TOKEN) -> tuple[Dialler, Acceptor, list[bytes]]:
    dialler, acceptor = Dialler(token_of_dialler, DRIVER), Acceptor(token_of_listener, HEAD)
    said = [dialler.start()]
    said.append(answer(acceptor, said[-1]))
    said.append(answer(dialler, said[-1]))
    said.append(answer(acceptor, said[-1]))
    assert dialler.receive(said[-1]) is None
    return dialler, acceptor, said


def test_both_sides_are_done_and_know_each_other() -> None:
    dialler, acceptor, said = record()
    assert dialler.done
    assert acceptor.done
    assert isinstance(dialler.remote, Challenge)
    assert isinstance(acceptor.remote, Hello)
    assert (dialler.remote.role, dialler.remote.name, dialler.remote.pid) == ("head", "h", os.getpid())
    assert (acceptor.remote.role, acceptor.remote.name, acceptor.remote.host_id) == ("driver", "d", dialler.remote.host_id)
    assert [type(message(data)) for data in said] == [Hello, Challenge, Proof, Welcome]
    assert max(map(len, said)) <= 4096
    assert not any(TOKEN in data for data in said)


def test_wrong_token_names_both_tokens_and_the_way_out_on_both_sides() -> None:
    dialler, acceptor = Dialler(TOKEN, DRIVER), Acceptor(OTHER, HEAD)
    hello = dialler.start()
    pattern = r"this token \(sha256 ([0-9a-f]{8})\.\.\) is not the cluster's \(([0-9a-f]{8})\.\.\).*HEADWAY_TOKEN_FILE"
    with pytest.raises(AuthenticationError, match=pattern) as refused:
        acceptor.receive(hello)
    assert not acceptor.done
    with pytest.raises(AuthenticationError) as told:
        dialler.receive(body(Failed("AuthenticationError", str(refused.value))))
    assert str(told.value) == str(refused.value)
    first, second = re.search(pattern, str(told.value)).groups()  # type: ignore[union-attr]
    assert first != second
    with pytest.raises(AuthenticationError, match=pattern):
        dialler.receive(answer(Acceptor(OTHER, HEAD), Dialler(OTHER, DRIVER).start()))


def test_a_dialler_that_lies_about_its_token_id_fails_at_the_proof() -> None:
    """What protects is the MAC, not the id."""
    liar, acceptor = Dialler(OTHER, DRIVER), Acceptor(TOKEN, HEAD)
    honest = Dialler(TOKEN, DRIVER)
    hello = dataclasses.replace(message(liar.start()), token_id=message(honest.start()).token_id)  # type: ignore[type-var, attr-defined]
    acceptor.receive(body(hello))
    with pytest.raises(AuthenticationError, match="proof does not fit"):
        acceptor.receive(body(Proof(b"\0" * 32)))
    assert not acceptor.done


def test_a_listener_that_cannot_prove_the_token_is_refused() -> None:
    dialler, acceptor = Dialler(TOKEN, DRIVER), Acceptor(TOKEN, HEAD)
    dialler.receive(answer(acceptor, dialler.start()))
    for mac in (b"", b"\0" * 32):
        with pytest.raises(AuthenticationError, match="could not prove"):
            dialler.receive(body(Welcome(mac)))
    assert not dialler.done


def test_replay_of_a_recorded_handshake_fails_on_both_sides() -> None:
    _, _, (hello, challenge, proof, welcome) = record()
    acceptor = Acceptor(TOKEN, HEAD)
    acceptor.receive(hello)
    with pytest.raises(AuthenticationError):
        acceptor.receive(proof)
    dialler = Dialler(TOKEN, DRIVER)
    dialler.start()
    dialler.receive(challenge)
    with pytest.raises(AuthenticationError):
        dialler.receive(welcome)
    assert not acceptor.done
    assert not dialler.done


def test_reflection_fails() -> None:
    """Without the token, the only source of MACs is the other side itself."""
    dialler = Dialler(TOKEN, DRIVER)
    hello = message(dialler.start())
    assert isinstance(hello, Hello)
    mirrored = Challenge(**{f.name: getattr(hello, f.name) for f in dataclasses.fields(hello)})
    proof = message(answer(dialler, body(mirrored)))
    assert isinstance(proof, Proof)
    with pytest.raises(AuthenticationError):
        dialler.receive(body(Welcome(proof.mac)))
    assert not dialler.done


def test_role_swap_fails() -> None:
    for make, foreign in ((Dialler, Dialler(TOKEN, HEAD).start()), (Acceptor, body(Challenge(*dataclasses.astuple(message(  # type: ignore[call-overload]
            Dialler(TOKEN, HEAD).start())))))):
        handshake = make(TOKEN, DRIVER)
        handshake.start()
        with pytest.raises(ProtocolError, match="no place"):
            handshake.receive(foreign)


@pytest.mark.parametrize("early", [Proof(b"x" * 32), Welcome(b"x" * 32), Ok()])
def test_steps_out_of_order_fail(early: Message) -> None:
    for make in (Dialler, Acceptor):
        handshake = make(TOKEN, DRIVER)
        handshake.start()
        with pytest.raises(ProtocolError):
            handshake.receive(body(early))


def test_a_second_hello_fails() -> None:
    acceptor, hello = Acceptor(TOKEN, HEAD), Dialler(TOKEN, DRIVER).start()
    acceptor.receive(hello)
    with pytest.raises(ProtocolError):
        acceptor.receive(hello)


def test_version_mismatch_lists_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "PROTOCOL", 2)
    monkeypatch.setattr(auth, "VERSION", "9.9.9")
    hello = Dialler(TOKEN, DRIVER).start()
    monkeypatch.undo()
    pattern = r"driver d speaks protocol 2 \(headway 9.9.9.*head h speaks 1 \(headway .*pip install headway=="
    with pytest.raises(VersionMismatchError, match=pattern) as refused:
        Acceptor(TOKEN, HEAD).receive(hello)
    with pytest.raises(VersionMismatchError, match=r"speaks protocol 2"):
        Dialler(TOKEN, DRIVER).receive(body(Failed("VersionMismatchError", str(refused.value))))


def test_a_short_nonce_is_refused() -> None:
    hello = dataclasses.replace(message(Dialler(TOKEN, DRIVER).start()), nonce=b"")  # type: ignore[type-var]
    with pytest.raises(ProtocolError, match="nonce of 0 bytes"):
        Acceptor(TOKEN, HEAD).receive(body(hello))


@given(st.integers(0, 3), st.integers(0, 10_000), st.integers(1, 255), st.booleans())
@settings(deadline=None, max_examples=300)
def test_P2_no_mutated_or_truncated_handshake_ends_with_both_sides_done(step: int, index: int, flip: int, cut: bool) -> None:
    dialler, acceptor = Dialler(TOKEN, DRIVER), Acceptor(TOKEN, HEAD)

    def on_the_way(number: int, data: bytes) -> bytes:
        if number != step:
            return data
        at = index % len(data)
        return data[:at] if cut else data[:at] + bytes((data[at] ^ flip,)) + data[at + 1:]

    try:
        said = on_the_way(0, dialler.start())
        said = on_the_way(1, answer(acceptor, said))
        said = on_the_way(2, answer(dialler, said))
        said = on_the_way(3, answer(acceptor, said))
        dialler.receive(said)
    except HeadwayError:
        pass
    # A flipped call id or epoch of Proof or Welcome means nothing and is covered by nothing; all else must not pass.
    if dialler.done:
        assert step >= 2
        assert not cut


def test_text_of_an_unauthenticated_refusal_is_made_harmless() -> None:
    with pytest.raises(AuthenticationError) as caught:
        Dialler(TOKEN, DRIVER).receive(body(Failed("AuthenticationError", "a\x1b]0;evil\r\nb")))
    assert str(caught.value) == "a?]0;evil??b"


def test_an_unknown_error_class_becomes_the_base_error() -> None:
    with pytest.raises(HeadwayError, match="SystemExit: x"):
        Dialler(TOKEN, DRIVER).receive(body(Failed("SystemExit", "x")))


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(AuthenticationError, match="empty"):
        Dialler(b"", DRIVER)


# ---- token file ----


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_created_token_is_random_and_closed_to_others(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "dir" / "token"
    before = os.umask(umask)
    try:
        token = load_or_create_token(path)
    finally:
        os.umask(before)
    assert len(token) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.read_text() == token.hex() + "\n"
    assert load_or_create_token(path) == load_token(str(path)) == token
    assert os.listdir(path.parent) == ["token"]
    assert load_or_create_token(tmp_path / "other") != token


def test_many_creators_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(lambda _: load_or_create_token(tmp_path / "d" / "token"), range(32)))
    assert len(tokens) == 1
    assert os.listdir(tmp_path / "d") == ["token"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o604, 0o660])
def test_a_token_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    load_or_create_token(path)
    path.chmod(mode)
    for load in (load_token, load_or_create_token):
        with pytest.raises(AuthenticationError, match=f"has mode {mode:04o}.*chmod 600 {path}"):
            load(path)


def test_missing_token_names_the_path_and_who_creates_it(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match=f"{tmp_path}/token does not exist.*python -m runtime.head.*HEADWAY_TOKEN_FILE"):
        load_token(tmp_path / "token")


def test_a_planted_symlink_is_refused(tmp_path: Path) -> None:
    load_or_create_token(tmp_path / "real")
    (tmp_path / "token").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("token", "dangling"):
        for load in (load_token, load_or_create_token):
            with pytest.raises(AuthenticationError, match=name):
                load(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(AuthenticationError, match=re.escape(str(path))):
            load_token(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change the owner")
def test_a_token_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    load_or_create_token(path)
    os.chown(path, 12345, 12345)
    with pytest.raises(AuthenticationError, match="user 12345"):
        load_token(path)


@pytest.mark.parametrize("content", [b"", b"abc", b"z" * 64, b"00" * 31, b"00" * 33, b"\xff" * 64, b"0" * 63 + "٣".encode()])
def test_what_is_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(AuthenticationError, match="does not hold 64 hexadecimal digits") as caught:
        load_token(path)
    assert content == b"" or content.decode(errors="replace") not in str(caught.value)


def test_default_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADWAY_TOKEN_FILE", str(tmp_path / "t"))
    assert default_token_path() == tmp_path / "t"
    assert load_or_create_token() == load_token()
    monkeypatch.delenv("HEADWAY_TOKEN_FILE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_token_path() == tmp_path / ".headway" / "token"
