"""The Rust core. One section per source file under `src/py`."""

from typing import final

from typing_extensions import Buffer

__version__: str

# ---- src/py/connection.rs ----

@final
class Framing:
    """Sends and receives the frames of one connection. Process-local."""

    def __new__(cls) -> Framing: ...
    def send(self, fd: int, buffer: Buffer, /) -> None:
        """Sends one message."""

    def recv(self, fd: int, maxlength: int | None = None, /) -> bytes | None:
        """Receives one message; None if its length is above `maxlength` or cannot be true."""

    def recv_into(self, fd: int, buffer: Buffer, offset: int, /) -> int | bytes | None:
        """Receives one message into `buffer`: its length, or the message if it does not fit."""

def send_offset(fd: int, buf: Buffer, offset: int) -> int:
    """Writes `buf` from byte `offset` on; returns the number of bytes written."""

def read(fd: int, buffer: Buffer, size: int = 0, /) -> int:
    """Reads up to `size` bytes (zero: as many as fit) into `buffer`; returns their number."""

def sendfd(sockfd: int, fd: int, /) -> None:
    """Sends descriptor `fd` over the Unix socket `sockfd`."""

def recvfd(sockfd: int, /) -> int:
    """Receives a descriptor over the Unix socket `sockfd`."""

def address_of_buffer(obj: Buffer, /) -> tuple[int, int]:
    """Address and length in bytes of a writable buffer."""

def make_pipe(duplex: bool, rnonblock: bool, wnonblock: bool, /) -> tuple[int, int]:
    """A new channel as two descriptors: connected sockets, or a pipe's two ends."""

def poll_readable(fd: int, timeout: float | None, /) -> bool:
    """Whether `fd` has something to read within `timeout` seconds."""

def wait_readable(fds: list[int], timeout: float | None, /) -> list[int]:
    """Those of `fds` that have something to read within `timeout` seconds."""

# ---- src/py/forkserver.rs ----

MAX_REQUEST_FDS: int
"""The most descriptors that a request to the fork server can carry."""

@final
class ForkRequest:
    """A child that a fork server was asked for. Process-local."""

    def __new__(cls, template: int, fds: list[int]) -> ForkRequest:
        """Asks the server behind the socket `template` for a child that gets `fds`."""

    def child(self) -> Child:
        """The child, as soon as it runs."""

    def detach(self) -> int:
        """The descriptor that the replies come over."""

def request_sockets() -> tuple[int, int]:
    """A new server's request socket: the clients' end, the template's."""

def serve_forks(requests: int) -> list[int] | None:
    """Serves forks until all clients have gone: None then, in each child its descriptors."""

# ---- src/py/process.rs ----

@final
class Child:
    """A process that this one started. Process-local."""

    @property
    def pid(self) -> int: ...
    @property
    def sentinel(self) -> int | None:
        """The descriptor that becomes readable when the process ends; None once closed."""

    def poll(self) -> int | None:
        """The exit code if the process has ended, else None."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for the end, at most `timeout` seconds; returns what `poll` does."""

    def send_signal(self, signal: int) -> None:
        """Sends `signal`; nothing happens if the process has ended."""

    def close(self) -> None:
        """Closes the sentinel."""

def fork() -> Child | None:
    """Forks through the interpreter's hooks: a `Child` in the parent, None in the child."""

def spawn(path: bytes, args: list[bytes], fds: list[int]) -> Child:
    """Starts a program with exactly the descriptors `fds`, beside 0, 1 and 2."""

def memory_file(data: bytes) -> int:
    """A descriptor to read `data` from."""

def watch_process(pid: int) -> int:
    """A descriptor that becomes readable when process `pid`, no child of this one, ends."""

# ---- src/py/util.rs ----

def get_pdeathsig() -> int:
    """The signal that this process gets when its parent dies, 0 for none."""

def set_pdeathsig(sig: int) -> None:
    """Have `sig` sent to this process when its parent dies; OSError if it is no signal."""
