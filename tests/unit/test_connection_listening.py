"""billiard.connection: listeners and clients, their addresses and the keys that they demand."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from connection_helpers import running
from scripts import interpreters

import billiard
from billiard import connection
from billiard.connection import Client, Listener, Pipe

KEY = b"the key"


# --- listeners and clients ---------------------------------------------------------------------


ADDRESSES: list[dict[str, Any]] = [
    {"family": "AF_INET"},
    {"family": "AF_UNIX"},
    {"address": f"\0billiard-test-{os.getpid()}"},
    {"address": ("127.0.0.1", 0), "authkey": KEY},
    {"authkey": KEY},
    {"authkey": b""},
]


@pytest.mark.parametrize("arguments", ADDRESSES, ids=str)
def test_listener_and_client_find_each_other(arguments: dict[str, Any]) -> None:
    with Listener(**arguments) as listener:

        def client() -> None:
            with Client(listener.address, authkey=arguments.get("authkey")) as there:
                there.send(there.recv() * 2)

        with running(client), listener.accept() as here:
            here.send(21)
            assert here.recv() == 42
        address = listener.address
    if type(address) is str:
        assert not os.path.exists(address)
    with pytest.raises(OSError):
        Client(address)
    with pytest.raises(OSError, match="listener is closed"):
        listener.accept()


def test_ipv6_by_its_family() -> None:
    family = "AF_INET6"
    try:
        listener = Listener(("::1", 0), family)
    except OSError as exc:
        pytest.skip(f"no IPv6: {exc}")
    with listener, Client(listener.address, family) as there, listener.accept() as here:
        here.send(21)
        assert there.recv() == 21


def test_address_kinds() -> None:
    assert connection.address_type(("h", 1)) == "AF_INET"
    assert connection.address_type("/path") == "AF_UNIX"
    assert connection.address_type(b"\0abstract") == "AF_UNIX"
    assert connection.address_type(r"\\.\pipe") == "AF_PIPE"
    for bad in (5, None, b"/path"):
        with pytest.raises(ValueError):
            connection.address_type(bad)
    for call in (Listener, Client):
        with pytest.raises(ValueError, match="AF_PIPE"):
            call(r"\\.\pipe")
    with pytest.raises(ValueError):
        connection.arbitrary_address("AF_PIPE")


def test_address_in_use_is_oserror() -> None:
    with Listener() as listener, pytest.raises(OSError) as caught:
        Listener(listener.address)
    assert caught.value.errno == errno.EADDRINUSE


def test_xml_connections_carry_objects() -> None:
    with connection.XmlListener() as listener:

        def client() -> None:
            end = connection.XmlClient(listener.address)
            end.send([1, "two", {"x": 2.5}])
            end.close()

        with running(client):
            end = listener.accept()
            assert end.recv() == [1, "two", {"x": 2.5}]
            end.close()


# --- keys --------------------------------------------------------------------------------------


def test_authkey_must_be_bytes() -> None:
    for call in (lambda: Listener(authkey="text"), lambda: Client("/none", authkey="text")):
        with pytest.raises(TypeError, match="byte string"):
            call()


def test_wrong_key_is_an_authentication_error_on_both_sides() -> None:
    with Listener(authkey=KEY) as listener:

        def client() -> None:
            with pytest.raises(billiard.AuthenticationError):
                Client(listener.address, authkey=b"other")

        with running(client), pytest.raises(billiard.AuthenticationError):
            listener.accept()

        def right_one() -> None:
            Client(listener.address, authkey=KEY).close()

        with running(right_one):
            listener.accept().close()


def raw_client(address: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    return client


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x14abc", b"\0\0\0\x05hello", b"\0\1\0\0"])
def test_a_peer_that_breaks_the_handshake_does_not_hold_the_listener(sent: bytes) -> None:
    with Listener(authkey=KEY) as listener, raw_client(listener.address) as peer:
        peer.sendall(sent)
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises((EOFError, OSError, billiard.AuthenticationError)):
            listener.accept()


@pytest.mark.parametrize("trickle", [False, True])
def test_a_peer_that_does_not_finish_the_handshake_is_dropped(
    trickle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECTION_TIMEOUT", 0.3)
    done = threading.Event()
    with Listener(authkey=KEY) as listener, raw_client(listener.address) as peer:

        def drip() -> None:
            with contextlib.suppress(OSError):
                peer.sendall(struct.pack("!i", 200))
                while trickle and not done.wait(0.02):
                    peer.sendall(b"x")

        with running(drip):
            try:
                with pytest.raises(billiard.AuthenticationError, match="did not finish"):
                    listener.accept()
            finally:
                done.set()


def test_a_client_waits_for_a_listener_that_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.2
    patient = connection.CONNECTION_TIMEOUT
    monkeypatch.setattr(connection, "CONNECTION_TIMEOUT", seconds)
    with Listener(authkey=KEY) as listener:
        connected = threading.Event()

        def client() -> None:
            with Client(listener.address, authkey=KEY):
                connected.set()

        with running(client):
            assert not connected.wait(2 * seconds)  # what the program does before it accepts
            monkeypatch.setattr(connection, "CONNECTION_TIMEOUT", patient)
            listener.accept().close()
        assert connected.is_set()
        monkeypatch.setattr(connection, "CONNECTION_TIMEOUT", seconds)
        with pytest.raises(billiard.AuthenticationError, match="did not finish"):
            Client(listener.address, authkey=KEY, patient=False)


def test_md5_peers_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ALLOW_MD5", False)
    old_server, client = Pipe()
    with old_server, client:
        old_server.send_bytes(connection.CHALLENGE + bytes(20))
        with pytest.raises(billiard.AuthenticationError, match="MD5"):
            connection.answer_challenge(client, KEY)
    server, old_client = Pipe()
    with server, old_client:
        old_client.send_bytes(bytes(16))
        with pytest.raises(billiard.AuthenticationError, match="MD5"):
            connection.deliver_challenge(server, KEY)
        old_client.recv_bytes()
        assert old_client.recv_bytes() == connection.FAILURE


@pytest.mark.parametrize("prefix", [b"", b"{md5}", b"{sha256}"])
def test_an_answer_is_of_the_kind_of_its_challenge(prefix: bytes) -> None:
    challenge = prefix + bytes(20)
    answer = connection._create_response(KEY, challenge)
    assert answer.startswith(prefix)
    connection._verify_challenge(KEY, challenge, answer)
    with pytest.raises(billiard.AuthenticationError):
        connection._verify_challenge(KEY, challenge + b"x", answer)


# --- keys, between us and multiprocessing ------------------------------------------------------


PEER = """
import sys
from multiprocessing.connection import Client, Listener
role, key = sys.argv[1], sys.argv[2].encode()
try:
    if role == "listen":
        with Listener(("127.0.0.1", 0), authkey=key) as listener:
            print(listener.address[1], flush=True)
            end = listener.accept()
    else:
        end = Client(("127.0.0.1", int(sys.argv[3])), authkey=key)
    with end:
        end.send(sys.version_info[:2])
        assert end.recv() == "hello"
except Exception as exc:
    print(type(exc).__name__, flush=True)
"""


def other_pythons() -> list[str]:
    return [sys.executable, *interpreters().values()]


@contextlib.contextmanager
def peer(python: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [python, "-I", "-c", PEER, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.wait(30)


@pytest.mark.parametrize("python", other_pythons())
def test_authentication_works_with_multiprocessing(python: str) -> None:
    with peer(python, "listen", KEY.decode()) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        with Client(("127.0.0.1", port), authkey=KEY) as end:
            assert end.recv() >= (3, 0)
            end.send("hello")
        assert process.stdout.read() == ""
    with (
        Listener(("127.0.0.1", 0), authkey=KEY) as listener,
        peer(python, "call", KEY.decode(), str(listener.address[1])) as process,
    ):
        with listener.accept() as end:
            assert end.recv() >= (3, 0)
            end.send("hello")
        assert process.stdout
        assert process.stdout.read() == ""


@pytest.mark.parametrize("python", other_pythons())
def test_wrong_keys_are_refused_by_and_from_multiprocessing(python: str) -> None:
    with peer(python, "listen", "other") as process:
        assert process.stdout
        port = int(process.stdout.readline())
        with pytest.raises(billiard.AuthenticationError):
            Client(("127.0.0.1", port), authkey=KEY)
        assert process.stdout.read().strip() == "AuthenticationError"
    with (
        Listener(("127.0.0.1", 0), authkey=KEY) as listener,
        peer(python, "call", "other", str(listener.address[1])) as process,
    ):
        with pytest.raises(billiard.AuthenticationError):
            listener.accept()
        assert process.stdout
        assert process.stdout.read().strip() == "AuthenticationError"
