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

# ---- src/py/util.rs ----

def get_pdeathsig() -> int:
    """The signal that this process gets when its parent dies, 0 for none."""

def set_pdeathsig(sig: int) -> None:
    """Have `sig` sent to this process when its parent dies; OSError if it is no signal."""
