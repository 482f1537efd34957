"""The handshake by which both ends of a connection show that they know a key, without sending it.

One end delivers a challenge, the other answers it, then they change roles::

    deliver                                   answer
    #CHALLENGE# + {digest} + random bytes  ─►
                                           ◄─ {digest} + HMAC(key, {digest} + random bytes)
    #WELCOME# or #FAILURE#                 ─►

It is the protocol of CPython 3.12 and newer. CPython up to 3.11 and billiard 4 know an older one,
without names of digests: their challenges are 20 bytes long and every answer is a bare HMAC-MD5, 16
bytes long. Lengths alone tell the two apart, so both kinds of peers can be talked to.
"""

from __future__ import annotations

import os
import time

from . import exceptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from .connection import Connection

    class Messages(Protocol):
        """What a handshake needs of a connection."""

        def send_bytes(self, buf: bytes, /) -> None: ...

        def recv_bytes(self, maxlength: int | None = None, /) -> bytes: ...


CHALLENGE = b"#CHALLENGE#"
WELCOME = b"#WELCOME#"
FAILURE = b"#FAILURE#"

#: bytes; nothing in the handshake is longer
LONGEST_MESSAGE = 256
OLD_CHALLENGE_LENGTH = 20
OLD_ANSWER_LENGTH = 16
DIGESTS = frozenset({"md5", "sha256", "sha384", "sha3_256", "sha3_384"})


class HandshakeConnection:
    """A connection on which the other end gets a limited time, however little it sends.

    The descriptor is non-blocking meanwhile: what has come of a message is kept by the connection.
    """

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + seconds

    def __enter__(self) -> HandshakeConnection:
        self._connection.setblocking(False)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._connection.closed:
            self._connection.setblocking(True)

    def send_bytes(self, buf: bytes, /) -> None:
        # a handful of bytes on a fresh socket: there is room
        self._connection.send_bytes(buf)

    def recv_bytes(self, maxlength: int | None = None, /) -> bytes:
        while True:
            try:
                return self._connection.recv_bytes(maxlength)
            except BlockingIOError:
                left = self._deadline - time.monotonic()
                if left <= 0 or not self._connection.poll(left):
                    raise exceptions.AuthenticationError(
                        "the peer did not finish the handshake"
                    ) from None


def check_authkey(authkey: object) -> None:
    """Raise `TypeError` unless `authkey` is `bytes`."""
    if not isinstance(authkey, bytes):
        raise TypeError("authkey should be a byte string")


def deliver(
    connection: Messages, authkey: bytes, digest_name: str, length: int, allow_md5: bool
) -> None:
    """Send a challenge of `length` random bytes, check the answer and tell the result."""
    check_authkey(authkey)
    challenge = b"{%s}" % digest_name.encode("ascii") + os.urandom(length)
    connection.send_bytes(CHALLENGE + challenge)
    answer = connection.recv_bytes(LONGEST_MESSAGE)
    try:
        check_answer(authkey, challenge, answer, allow_md5)
    except exceptions.AuthenticationError:
        connection.send_bytes(FAILURE)
        raise
    connection.send_bytes(WELCOME)


def answer(connection: Messages, authkey: bytes, allow_md5: bool) -> None:
    """Receive a challenge, answer it and hear the result."""
    check_authkey(authkey)
    message = connection.recv_bytes(LONGEST_MESSAGE)
    if not message.startswith(CHALLENGE):
        raise exceptions.AuthenticationError(
            f"protocol error: expected a challenge, got {message!r}"
        )
    connection.send_bytes(create_answer(authkey, message[len(CHALLENGE) :], allow_md5))
    if connection.recv_bytes(LONGEST_MESSAGE) != WELCOME:
        raise exceptions.AuthenticationError("digest sent was rejected")


def create_answer(authkey: bytes, challenge: bytes, allow_md5: bool) -> bytes:
    """The answer to a challenge, of the kind that its sender understands."""
    if len(challenge) == OLD_CHALLENGE_LENGTH:
        return _mac(authkey, challenge, "md5", allow_md5)
    name = _split_digest(challenge)[0]
    return b"{%s}" % name.encode("ascii") + _mac(authkey, challenge, name, allow_md5)


def check_answer(authkey: bytes, challenge: bytes, answer: bytes, allow_md5: bool) -> None:
    """Raise `AuthenticationError` unless `answer` shows that its sender knows the key."""
    import hmac

    if len(answer) == OLD_ANSWER_LENGTH:
        name, mac = "md5", answer
    else:
        name, mac = _split_digest(answer)
    # The name of the digest is under the MAC too: nobody in between can have it weakened.
    if not hmac.compare_digest(_mac(authkey, challenge, name, allow_md5), mac):
        raise exceptions.AuthenticationError("digest received was wrong")


def _split_digest(message: bytes) -> tuple[str, bytes]:
    """The name and the rest of ``{name}rest``."""
    name, brace, rest = message.partition(b"}")
    digest = name[1:].decode("ascii", "replace")
    if not (brace and name.startswith(b"{") and digest in DIGESTS):
        raise exceptions.AuthenticationError(f"no digest or one that is not supported: {message!r}")
    return digest, rest


def _mac(authkey: bytes, message: bytes, digest: str, allow_md5: bool) -> bytes:
    import hmac

    if digest == "md5" and not allow_md5:
        raise exceptions.AuthenticationError(
            "the peer offers nothing better than MD5, which is not allowed"
        )
    try:
        return hmac.new(authkey, message, digest).digest()
    except ValueError:
        raise exceptions.AuthenticationError(f"{digest} is not available here") from None
