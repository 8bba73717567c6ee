"""The cluster token and the mutual handshake that proves it. Sans-IO.

::

    dialler                          listener
      Hello(who, nonce)        ->
                               <-      Challenge(who, nonce)
      Proof(HMAC(dialler))     ->                                 the listener opens
                               <-      Welcome(HMAC(listener))    the dialler opens

Both MACs are HMAC-SHA256 under the token over a label and the transcript of the bytes exchanged. Labels differ by direction, so reflection
and role swap fail; both sides give a fresh nonce, so replay fails; the transcript covers versions and names, so changing them fails.
Who is refused is told so by ``Failed`` (error class, text), and learns nothing about the token beyond 32 bits of its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import platform
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import AuthenticationError, ProtocolError, VersionMismatchError, by_name
from runtime.wire.address import host_id
from runtime.wire.codec import decode, encode, unpacker
from runtime.wire.messages import PROTOCOL, Challenge, Failed, Hello, Message, Proof, Welcome

__all__ = ["Acceptor", "Dialler", "Handshake", "Identity", "VERSION", "clean", "default_token_path", "load_or_create_token", "load_token",
           "who"]

VERSION = "0.1.0"
TOKEN_BYTES = 32
NONCE_BYTES = 32
DIALLER_LABEL, LISTENER_LABEL = b"hw1/c2s", b"hw1/s2c"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a process says of itself; pid, versions and host id are filled in. ``role``: head, worker, driver, actor, cli."""

    role: str
    name: str


class Handshake:
    """One side of the handshake. ``receive`` takes the body of each control frame and returns the body to answer with."""

    remote: Hello | Challenge | None = None  # what the other side said of itself; to be trusted once done
    done = False

    def __init__(self, token: bytes, identity: Identity) -> None:
        if not token:
            raise AuthenticationError("The token is empty: load it from the token file, it is what protects this cluster.")
        self._token = token
        self._token_id = hashlib.sha256(token).hexdigest()[:8]
        self._identity = identity
        self._transcript = hashlib.sha256()
        self._unpack = unpacker()

    def start(self) -> bytes | None:
        """The body to send first, if it is on this side to begin."""
        return None

    def receive(self, body: bytes) -> bytes | None:
        """One step.

        Raises: AuthenticationError, VersionMismatchError, ProtocolError: the handshake failed, on this side or on the other.
        """
        message = decode(body, self._unpack).message
        if isinstance(message, Failed):
            raise by_name(message.error, clean(message.text))
        return self._step(message, body)

    def _step(self, message: Message, body: bytes) -> bytes | None:
        raise NotImplementedError

    def _note(self, body: bytes) -> bytes:
        """Add what was sent or received to the transcript."""
        self._transcript.update(len(body).to_bytes(4, "big") + body)
        return body

    def _introduction(self, kind: type[Hello] | type[Challenge]) -> Hello | Challenge:
        return kind(role=self._identity.role, name=self._identity.name, protocol=PROTOCOL, version=VERSION,
                    python=platform.python_version(), pid=os.getpid(), host_id=host_id(), nonce=secrets.token_bytes(NONCE_BYTES),
                    token_id=self._token_id)

    def _mac(self, label: bytes) -> bytes:
        return hmac.digest(self._token, label + self._transcript.digest(), "sha256")

    def _check_remote(self, remote: Hello | Challenge) -> None:
        """Refuse early, with a text that helps; what protects is the MAC."""
        if remote.protocol != PROTOCOL:
            raise VersionMismatchError(
                f"{who(remote)} speaks protocol {remote.protocol} (headway {clean(remote.version)}, Python {clean(remote.python)}), "
                f"{self._identity.role} {self._identity.name} speaks {PROTOCOL} (headway {VERSION}, Python {platform.python_version()}). "
                f"Install the same version on both sides: pip install headway=={VERSION}")
        if len(remote.nonce) != NONCE_BYTES:
            raise ProtocolError(f"{type(remote).__name__} has a nonce of {len(remote.nonce)} bytes, not {NONCE_BYTES}.")
        self.remote = remote


class Dialler(Handshake):
    """The side that opened the connection."""

    def start(self) -> bytes:
        """The body of Hello."""
        return self._note(encode(self._introduction(Hello), 0, 0))

    def _step(self, message: Message, body: bytes) -> bytes | None:
        if isinstance(message, Challenge) and self.remote is None:
            self._check_remote(message)
            if message.token_id != self._token_id:
                raise _wrong_token(self._token_id, message.token_id)
            self._note(body)
            return encode(Proof(self._mac(DIALLER_LABEL)), 0, 0)
        if isinstance(message, Welcome) and self.remote is not None:
            if not hmac.compare_digest(message.mac, self._mac(LISTENER_LABEL)):
                raise AuthenticationError(f"Authentication failed: who answered as {who(self.remote)} could not prove "
                                          "that it holds the token. It may be another program, or stand between you and the cluster.")
            self.done = True
            return None
        raise ProtocolError(f"{type(message).__name__} has no place in this step of the handshake.")


class Acceptor(Handshake):
    """The side that listened."""

    def _step(self, message: Message, body: bytes) -> bytes | None:
        if isinstance(message, Hello) and self.remote is None:
            self._check_remote(message)
            if message.token_id != self._token_id:
                raise _wrong_token(message.token_id, self._token_id)
            self._note(body)
            return self._note(encode(self._introduction(Challenge), 0, 0))
        if isinstance(message, Proof) and self.remote is not None:
            if not hmac.compare_digest(message.mac, self._mac(DIALLER_LABEL)):
                raise AuthenticationError("Authentication failed: the proof does not fit the token and what was said in this handshake.")
            self.done = True
            return encode(Welcome(self._mac(LISTENER_LABEL)), 0, 0)
        raise ProtocolError(f"{type(message).__name__} has no place in this step of the handshake.")


def default_token_path() -> Path:
    """``HEADWAY_TOKEN_FILE``, else ``~/.headway/token``."""
    return Path(os.environ.get("HEADWAY_TOKEN_FILE") or "~/.headway/token").expanduser()


def load_token(path: str | os.PathLike[str] | None = None) -> bytes:
    """The token in the file ``path`` (default: ``default_token_path()``), which must be ours and closed to all others.

    Raises: AuthenticationError: no such file, a symlink, another owner, open to group or others, or no token in it.
    """
    path = default_token_path() if path is None else Path(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise AuthenticationError(f"No token: {path} does not exist. `python -m runtime.head` creates it on the head's host; copy it from "
                                  f"there with mode 0600, or set HEADWAY_TOKEN_FILE.") from exc
    except OSError as exc:
        raise AuthenticationError(f"Token file {path} can't be opened ({exc.strerror}): it must be a regular file of yours.") from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise AuthenticationError(f"Token file {path} must be a regular file of user {os.geteuid()}; it is user {status.st_uid}'s.")
        if status.st_mode & 0o077:
            raise AuthenticationError(f"Token file {path} has mode {stat.S_IMODE(status.st_mode):04o}, so others can read it. "
                                      f"Close it (chmod 600 {path}); if this host is shared, make a new token.")
        content = os.read(fd, 4 * TOKEN_BYTES).strip()
    finally:
        os.close(fd)
    try:
        token = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        token = b""
    if len(token) != TOKEN_BYTES:
        raise AuthenticationError(f"Token file {path} does not hold {2 * TOKEN_BYTES} hexadecimal digits. Copy it again.")
    return token


def load_or_create_token(path: str | os.PathLike[str] | None = None) -> bytes:
    """The token in ``path``; a missing one is created, whole or not at all, also when several processes do so at once."""
    path = default_token_path() if path is None else Path(path)
    if not os.path.lexists(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w", encoding="ascii") as file:
                os.fchmod(fd, 0o600)  # a umask of 0o277 would leave it unreadable to us
                file.write(secrets.token_hex(TOKEN_BYTES) + "\n")
                file.flush()
                os.fsync(fd)
            os.link(draft, path)
        except FileExistsError:
            pass  # somebody else was first: theirs counts
        finally:
            os.unlink(draft)
    return load_token(path)


def _wrong_token(dialler: str, listener: str) -> AuthenticationError:
    return AuthenticationError(f"Authentication failed: this token (sha256 {clean(dialler, 8)}..) is not the cluster's "
                               f"({clean(listener, 8)}..). Copy {default_token_path()} from the head's host or set HEADWAY_TOKEN_FILE.")


def who(remote: Hello | Challenge) -> str:
    """Role and name as the other side gave them."""
    return f"{clean(remote.role, 32)} {clean(remote.name, 128) or remote.pid}"


def clean(text: str, max_chars: int = 1000) -> str:
    """What a peer says of itself, fit for logs and error texts."""
    return "".join(c if c.isprintable() else "?" for c in text[:max_chars])
