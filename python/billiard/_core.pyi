"""The Rust core. One section per source file under `src/py`."""

import sys
from collections.abc import Callable, Iterable
from types import GetSetDescriptorType
from typing import Any, ClassVar, Self, TypeVar, final

from typing_extensions import Buffer, disjoint_base

__version__: str

# ---- src/py/codec.rs ----

def plain_dumps(obj: object, /, *more: object) -> bytes | None:
    """The pickle of a plain value, or of a tuple of several; None if it is not plain. For tests.

    Plain are `None`, `bool`, `int`, `float`, `str`, `bytes`, and `tuple`, `list` and `dict` of
    plain values: objects of exactly these types, not too large, and no list or dict met twice.
    """

def plain_loads(data: bytes, /) -> Any:
    """The plain value of a pickle; ValueError if it is not plain, or no pickle. For tests."""

# ---- src/py/connection.rs ----

@final
class Framing:
    """Sends and receives the frames of one connection. Process-local."""

    def __new__(cls) -> Framing: ...
    def close(self) -> None:
        """The connection is about to be closed: calls of other threads go no further (EBADF)."""

    def send(self, fd: int, buffer: Buffer, /) -> None:
        """Sends one message."""

    def recv(self, fd: int, maxlength: int | None = None, /) -> bytes | None:
        """Receives one message; None if its length is above `maxlength` or cannot be true."""

    def recv_pickle(self, fd: int, /) -> Buffer | None:
        """Receives one message to be unpickled and forgotten; None if its length cannot be true."""

    def recv_into(self, fd: int, buffer: Buffer, offset: int, /) -> int | bytes | None:
        """Receives one message into `buffer`: its length, or the message if it does not fit."""

@final
class Lent:
    """A message in memory that is used again when the object has gone. Process-local."""

    def __len__(self) -> int: ...

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

    def reopen(self) -> int:
        """The sentinel; once closed, another descriptor that is readable as it was."""

    def close(self) -> None:
        """Closes the sentinel."""

def fork_all(many: int) -> list[Child | OSError] | int:
    """Forks through the interpreter's hooks, many times: what became of each fork; in a child its
    number."""

def spawn(path: bytes, args: list[bytes], fds: list[int]) -> Child:
    """Starts a program with exactly the descriptors `fds`, beside 0, 1 and 2."""

@final
class Starting:
    """A program that is being started, as by `spawn`, while this process goes on."""

    def __new__(cls, path: bytes, args: list[bytes], fds: list[int]) -> Self:
        """Starts it, and takes the descriptors over."""

    def child(self) -> Child:
        """The child, as soon as it exists; once."""

def memory_file(data: bytes) -> int:
    """A descriptor to read `data` from."""

def hand_over(spare: int, message: int, fds: list[int]) -> None:
    """Hands a start over to a spare interpreter."""

def wait_for_start(socket: int) -> int | None:
    """The message of the start that is handed over, or None if none ever will be."""

def file_identity(fd: int) -> tuple[int, int]:
    """What file a descriptor is of: device and inode."""

def watch_process(pid: int, start: int | None = None) -> int:
    """A descriptor that becomes readable when process `pid`, which started then, ends."""

def lifeline() -> int:
    """The descriptor by which children hold on to this process. It stays open."""

def hold_lifeline(fd: int) -> None:
    """Be killed by the kernel when the process that made the lifeline `fd` is gone."""

def process_start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since the machine did."""

# ---- src/py/payload/ ----

@final
class ExtentSender:
    """Sends objects through extents of a segment of its own, for tests and benchmarks.

    At most `entries` messages and (with more than one message) `limit` bytes are lent at a time;
    `idle` bytes are kept for the next ones. Process-local.
    """

    def __new__(
        cls, entries: int = 1024, limit: int | None = None, idle: int | None = None
    ) -> ExtentSender: ...
    @property
    def fd(self) -> int:
        """The descriptor of the segment."""

    @property
    def lent(self) -> int:
        """Bytes of messages that have not come back."""

    @property
    def resident(self) -> int:
        """Bytes of memory that the segment takes."""

    def send(self, pickler: Any, obj: object) -> int | None:
        """Sends `obj`: the reference for the receiver, or None if there is no room."""

    def trim(self) -> None:
        """Gives the memory back that is idle."""

    def discard(self, index: int) -> bool:
        """Frees a message that nobody will take; False if somebody has."""

    def reclaim(self, holder: int) -> None:
        """Frees what a receiver still had that has died."""

    def holders(self) -> list[int]:
        """The receivers that have messages."""

    @staticmethod
    def pickle(pickler: Any, obj: object) -> tuple[bytes, bool, int]:
        """The pickle, whether there are buffers beside it, and the bytes of the message."""

    @staticmethod
    def lay_out_pickle(pickle: Buffer) -> bytes:
        """The message of a pickle that there is already."""

    @staticmethod
    def lay_out(pickler: Any, obj: object) -> bytes:
        """The message as it would be in an extent."""

@final
class ExtentReceiver:
    """Receives what an `ExtentSender` sends, as number `holder`. Takes `fd` over. Process-local."""

    def __new__(cls, fd: int, holder: int, entries: int = 1024) -> ExtentReceiver: ...
    def receive(self, index: int) -> Any:
        """The object of a message, once; RuntimeError if there is no such message."""

    def hold(self, index: int) -> None:
        """Takes a message and never lets go of it."""

    @staticmethod
    def read(message: bytes) -> Any:
        """The object of a message in the heap."""

# ---- src/py/exit.rs ----

def with_finalizers(objects: list[Any]) -> list[Any]:
    """Those of `objects` whose types have finalizers (`__del__`, or what C code has for it)."""

def exit(status: int) -> None:
    """Ends the process as a C program does: exit(3), and no Python any more."""

# ---- src/py/queues ----

@disjoint_base
class Queue:
    """A queue for many processes: a ring in shared memory. Process-shared words and bytes.

    What the ring has no room for waits in the process, for a thread of the core to move it.
    """

    def __new__(cls, *_args: object, **_kwargs: object) -> Self: ...
    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object into the queue.

        If the queue is full, wait for room (at most `timeout` seconds) or, with `block` false,
        do not; without room `queue.Full` is raised. `ValueError` on a closed queue. An object that
        cannot be pickled goes to `_on_queue_feeder_error` and is dropped. From multiprocessing.
        """

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest object out of the queue.

        If there is none, wait for one (at most `timeout` seconds) or, with `block` false, do not;
        without one `queue.Empty` is raised. `ValueError` on a closed queue. From multiprocessing.
        """

    def put_many(
        self, objects: Iterable[Any], block: bool = True, timeout: float | None = None
    ) -> int:
        """Put objects in, one after the other; returns how many.

        That is all of them but those that cannot be pickled, and but those that a full queue had no
        room for in time. `queue.Full` if it had room for none. Ours.
        """

    def get_many(
        self, most: int | None = None, block: bool = True, timeout: float | None = None
    ) -> list[Any]:
        """Take the objects that are there, at most `most`: at least one, else as `get`.

        What one call takes is lost together if the process dies. Ours.
        """

    def qsize(self) -> int:
        """How many objects are in the queue, those included that wait for room in it."""

    def full(self) -> bool:
        """Whether `put` would have to wait."""

    def _set_up(self, limit: int) -> None:
        """Makes an object without parts a new queue for at most `limit` objects; 0: any number."""

    def _adopt(self, block: Block, reader: int, writer: int) -> None:
        """Makes an object without parts the queue in this block; takes the descriptors over."""

    @staticmethod
    def _pickle_with(dumps: Callable[[Any], Any], loads: Callable[..., Any]) -> None:
        """Sets what pickles and unpickles objects that are not plain."""

    @property
    def _block(self) -> Block:
        """The memory that the queue is in."""

    @property
    def _closed(self) -> bool:
        """Whether this process has closed it."""

    @_closed.setter
    def _closed(self, value: bool) -> None: ...
    def _is_empty(self) -> bool:
        """Whether there is nothing to get."""

    def _wait(self, timeout: float | None = None) -> bool:
        """Waits until there is something to get. False after `timeout` seconds."""

    def _unfinished(self) -> int:
        """How many objects have not been reported done."""

    def _task_done(self) -> bool:
        """Reports one done. False if all had been."""

    def _join(self) -> None:
        """Waits until all have been reported done, if only for a moment."""

    def _watch(self) -> int:
        """A descriptor that is readable while there is something to get."""

    def _fds(self) -> tuple[int, int]:
        """Both ends of the pipe that goes with the queue."""

    def _writer_fd(self) -> int:
        """One end of it."""

    def _close_reader(self) -> None:
        """This process takes no more."""

    def _close_ends(self) -> None:
        """Nor does it put any more, but what it still has to move."""

    def _is_moving(self) -> bool:
        """Whether there is anything left to move."""

    def _mover(self) -> QueueMover:
        """The thread that moves it."""

@final
class QueueMover:
    """The thread of the core that moves into a queue what this process has put. Process-local."""

    @property
    def name(self) -> str:
        """What multiprocessing calls it."""

    @property
    def daemon(self) -> bool:
        """True: it holds up nobody."""

    def is_alive(self) -> bool:
        """Whether there is something to move."""

    def join(self, timeout: float | None = None) -> None:
        """Waits until there is nothing left to move, for at most `timeout` seconds."""

    def finish(self) -> None:
        """The same at the end of the process; ends early if no process takes anything any more."""

# ---- src/py/shared_memory.rs ----

def shm_allocate(fd: int, size: int) -> None:
    """Give a new segment `size` bytes; OSError(ENOSPC) if there is no room."""

def shm_open(name: str, flags: int, mode: int) -> int:
    """A descriptor of the segment called `name`; `flags` and `mode` as for open(2)."""

def shm_unlink(name: str) -> None:
    """Remove the name of a segment."""

# ---- src/py/util.rs ----

def get_pdeathsig() -> int:
    """The signal that this process gets when its parent dies, 0 for none."""

def set_pdeathsig(sig: int) -> None:
    """Have `sig` sent to this process when its parent dies; OSError if it is no signal."""

# ---- src/py/heap.rs ----

@final
class Segment:
    """A mapped segment of shared memory. Process-local handle."""

    @property
    def id(self) -> bytes:
        """What names the segment in all processes."""

    @property
    def fd(self) -> int:
        """Its descriptor; OSError (EBADF) if the program has closed it."""

    def lend(self) -> Loan:
        """Announces a process that will map the segment."""

    @staticmethod
    def borrow(id: bytes, fd: int, promises: list[tuple[int, int, int, int]]) -> Segment:
        """Maps a segment that was lent to this process; takes the descriptor over."""

    def block(self, offset: int, size: int) -> Block:
        """The block that the segment's maker gave out there."""

    def __len__(self) -> int: ...

@final
class Loan:
    """A segment lent to a process that is being started. Process-local."""

    @property
    def promises(self) -> list[tuple[int, int, int, int]]:
        """What the other process gives to `Segment.borrow`."""

@disjoint_base
class Block:
    """Shared bytes, freed with the last object that holds them. Process-local handle."""

    def __new__(cls, size: int | Block) -> Self: ...
    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def offset(self) -> int:
        """Where the block starts in its segment."""

    @property
    def address(self) -> int:
        """Where this process sees the block."""

    @property
    def segment(self) -> Segment:
        """Where the block is."""

    def __len__(self) -> int: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

_Block = TypeVar("_Block", bound=Block)

def new_block(class_: type[_Block], size: int, /) -> _Block:
    """A new block of this class, without a call of its `__init__`."""

# ---- src/py/sharedctypes.rs ----

@disjoint_base
class Guarded:
    """An object and its lock. Process-local; what they stand for is shared."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Self: ...
    def __init__(self, obj: Any, lock: Any) -> None: ...
    @property
    def _obj(self) -> Any:
        """The object."""

    @property
    def _lock(self) -> Any:
        """The lock."""

    def get_obj(self) -> Any:
        """The object, which can be used without the lock."""

    def get_lock(self) -> Any:
        """The lock."""

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        """Acquires the lock."""

    def release(self) -> Any:
        """Releases the lock."""

    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

_Guarded = TypeVar("_Guarded", bound=Guarded)

def new_guarded(class_: type[_Guarded], obj: Any, lock: Any, /) -> _Guarded:
    """A new object of this class, without a call of its `__init__`."""

def guarded_field(name: str, /) -> GetSetDescriptorType:
    """A property of guarded objects: that attribute of the object, with the lock held."""

# ---- src/py/synchronize ----

@disjoint_base
class SemLock:
    """A semaphore or recursive mutex in shared memory. Process-shared words."""

    SEM_VALUE_MAX: ClassVar[int]
    def __new__(cls, *_args: object, **_kwargs: object) -> Self: ...
    def __init__(
        self, kind: int, value: int, maxvalue: int, name: str | None = None, unlink: bool = True
    ) -> None: ...
    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquires it; False if it cannot be had (within `timeout` seconds)."""

    def release(self) -> None:
        """Releases it."""

    def __enter__(self) -> bool: ...
    def __exit__(self, *args: object) -> None: ...
    def _count(self) -> int:
        """How often this process holds it."""

    def _is_mine(self) -> bool:
        """Whether this thread holds it."""

    def _get_value(self) -> int:
        """The value; of a mutex, 1 if it is free."""

    def _is_zero(self) -> bool:
        """Whether the value is 0."""

    def _after_fork(self) -> None:
        """Forgets what this process had acquired."""

    def _adopt(self, block: Block, kind: int, maxvalue: int) -> None:
        """Makes an object without parts the lock in this block."""

    @staticmethod
    def _rebuild(handle: Block, kind: int, maxvalue: int, name: str | None = None) -> SemLock:
        """The lock in this block."""

    @property
    def _block(self) -> Block:
        """The memory that the lock is in."""

    @property
    def handle(self) -> int:
        """Where this process sees the lock."""

    @property
    def kind(self) -> int:
        """0: recursive mutex, 1: semaphore."""

    @property
    def maxvalue(self) -> int:
        """The highest value."""

    @property
    def name(self) -> None:
        """It has no name in the system."""

    @staticmethod
    def sem_unlink(name: str) -> None:
        """Unlinks a named semaphore of the system."""

_Lock = TypeVar("_Lock", bound=SemLock)

def new_lock(class_: type[_Lock], /) -> _Lock:
    """A new lock of this class, without a call of its `__init__`."""

def new_rlock(class_: type[_Lock], /) -> _Lock:
    """A new recursive mutex of this class, without a call of its `__init__`."""

def sem_unlink(name: str) -> None:
    """Unlinks a named semaphore of the system."""

@disjoint_base
class Condition:
    """A condition variable over a lock. Process-shared words."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Self: ...
    def __init__(self, lock: Any) -> None: ...
    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        """Acquires the lock."""

    def release(self) -> Any:
        """Releases the lock."""

    def __enter__(self) -> Any: ...
    def __exit__(
        self, exc_type: object = None, exc_value: object = None, traceback: object = None
    ) -> Any: ...
    def wait(self, timeout: float | None = None) -> bool:
        """Waits until notified; False after `timeout` seconds."""

    def notify(self, n: int = 1) -> None:
        """Lets `n` waiters go as soon as the lock is free."""

    def notify_all(self) -> None:
        """Lets all waiters go as soon as the lock is free."""

    def _adopt(self, lock: Any, block: Block) -> None:
        """Makes an object without parts the condition in this block."""

    def _counts(self) -> tuple[int, int]:
        """How many wait, and how many were notified but have not gone yet."""

    @property
    def _block(self) -> Block:
        """The memory that the condition is in."""

    @property
    def _lock(self) -> Any:
        """The lock."""

@disjoint_base
class Event:
    """A flag that processes wait for. Process-shared word."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Self: ...
    def __init__(self, *_args: object, **_kwargs: object) -> None: ...
    def is_set(self) -> bool:
        """Whether it is set."""

    def set(self) -> None:
        """Sets it and lets all waiters go."""

    def clear(self) -> None:
        """Unsets it."""

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is set, or was for a moment; False after `timeout` seconds."""

    def _adopt(self, block: Block) -> None:
        """Makes an object without parts the event in this block."""

    @property
    def _block(self) -> Block:
        """The memory that the event is in."""

@disjoint_base
class Barrier:
    """A point that a number of parties reach together. Process-shared words."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Self: ...
    def __init__(
        self, parties: int, action: Any | None = None, timeout: float | None = None
    ) -> None: ...
    def wait(self, timeout: float | None = None) -> int:
        """Waits for the other parties; breaks the barrier after `timeout` seconds."""

    def reset(self) -> None:
        """Makes it as new."""

    def abort(self) -> None:
        """Breaks it."""

    def _adopt(self, block: Block, parties: int, action: Any | None, timeout: float | None) -> None:
        """Makes an object without parts the barrier in this block."""

    @property
    def _block(self) -> Block:
        """The memory that the barrier is in."""

    @property
    def _action(self) -> Any | None:
        """What one party calls when all are there."""

    @property
    def _timeout(self) -> float | None:
        """Seconds that `wait` waits if it is not told."""

    @property
    def _state(self) -> int:
        """0: parties arrive; 1: the action runs; -2: broken."""

    @property
    def parties(self) -> int:
        """How many parties it takes."""

    @property
    def n_waiting(self) -> int:
        """How many parties wait."""

    @property
    def broken(self) -> bool:
        """Whether it is broken."""

# ---- pools: under _pool/native.py and supervision.py ----

@final
class PoolEngine:
    """The tasks and workers of one pool, and the thread that looks after them. Process-local."""

    def __new__(cls, wire: Any) -> Self:
        """Makes the shared memory. `wire`: the module with the pickling."""

    def start(self) -> None:
        """Starts the thread that looks after deaths, limits, and what nobody waits for."""

    def apply(self, pool: Any, func: Any, args: Any, kwargs: Any) -> PoolResult:
        """Has `func(*args, **kwargs)` called. The pool lives until the result is there."""

    def sequence(self, pool: Any, ordered: bool) -> PoolSequence:
        """A sequence of results, for tasks that its `feed` submits."""

    def put(
        self, job: int, i: int | None, func: Any, args: Any, kwargs: Any, soft: float, hard: float
    ) -> None:
        """Submits a task of a job of the book, with its limits in seconds (0: none)."""

    def put_item(self, sequence: PoolSequence, i: int, func: Any, item: Any) -> None:
        """Submits a task of a sequence."""

    def wait_for_room(self, tasks: int, bytes: int) -> None:
        """Waits until there is room, or no tasks are wanted any more."""

    def cancel(self, job: int, i: int | None, info: Any) -> bool:
        """Ends the tasks of a job of the book, or one of them; whether all of them could be."""

    def cancel_all(self, info: Any) -> list[PoolResult]:
        """Ends all tasks of callers. The results of those that had none."""

    def settle(self, task: int, info: Any) -> None:
        """The outcome of a task that was lost with its worker."""

    def withdraw(self, info: Any) -> None:
        """Fails all tasks that no worker has claimed."""

    def abandon_all(self, info: Any) -> None:
        """Fails all tasks of callers, not those of the book."""

    def poll(self, timeout: float | None = None) -> tuple[bool, Any]:
        """Waits for a message, at most so many seconds: (True, message) or (False, None)."""

    def post(self, message: Any) -> None:
        """Has `poll` return a message, after all that came before."""

    def next_event(self, timeout: float | None = None) -> Any:
        """Waits for an event, at most so many seconds: a message, or None."""

    def change(self) -> None:
        """Has `next_event` return: there is something else to look after."""

    def let_go(self) -> None:
        """Lets go of the pool if it has no tasks."""

    def take_ended(self) -> int:
        """Tasks that have ended since this was last asked."""

    def live(self) -> int:
        """Tasks without an outcome."""

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Waits until there are none, at most so many seconds; whether that is so."""

    def has_waiting(self) -> bool:
        """Whether a task waits for a worker."""

    def lane(self) -> PoolLane:
        """The shared memory of the next worker."""

    def fork_workers(
        self, lanes: list[PoolLane], standstill: Any = None
    ) -> list[Child | OSError] | int:
        """Forks a worker for each lane, which it gets and no other; returns what `fork_all` does.

        Of the first ones, those that no CPU is free for begin with the second task, or a moment
        after `start`. Before each fork all of `standstill.locks()` are taken, from after the hooks
        until after the fork; if one is not free, `standstill.wait_for` it is called instead.
        """

    def ready(self) -> int:
        """How many workers have become ready so far."""

    def begin(self) -> None:
        """Lets all workers begin."""

    def forgo(self, lane: PoolLane) -> None:
        """No worker has been started with it."""

    def attach(self, lane: PoolLane, pid: int, sentinel: int) -> None:
        """A worker has been started with `lane`; `sentinel` becomes readable when it ends."""

    def bury(self, lane: PoolLane, pid: int) -> None:
        """A worker has been started with `lane`, and has ended: as at any other death."""

    def retire(self, index: int, even_if_busy: bool) -> bool:
        """Has a worker take no more tasks, and exit; False if it is at one."""

    def is_busy(self, index: int) -> bool:
        """Whether a worker is at a task."""

    def condemn(self, index: int) -> bool:
        """Decides that what a worker is at will not be finished; False if it is at nothing."""

    def close(self) -> None:
        """No more tasks will be submitted: workers exit when all are done."""

    def terminate(self, info: Any) -> None:
        """Hands out nothing more; callers whose tasks were not claimed get an ExceptionInfo."""

    def abandon(self) -> None:
        """Closes the descriptors: in a forked child that is no worker of the pool."""

    def stop(self) -> None:
        """Ends the thread, and lets go of the pool."""

@final
class PoolResult:
    """The result of a call without callbacks and limits; to its users an `ApplyResult`."""

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def get(self, timeout: float | None = None) -> Any:
        """Waits for the outcome: returns the value or raises the task's exception."""

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the outcome."""

    def ready(self) -> bool:
        """Whether there is an outcome."""

    def successful(self) -> bool:
        """Whether the outcome is a value; ValueError if there is none yet."""

    def accepted(self) -> bool:
        """Whether a worker has begun with it."""

    def cancel(self) -> bool:
        """Ends the task; False if it was too late for that."""

    def worker_pids(self) -> list[int]:
        """The pids of the workers that have accepted it."""

    def discard(self) -> None:
        """Forgets the job."""

    def _set(self, i: Any, outcome: tuple[bool, Any]) -> None:
        """Sets the outcome, unless there is one."""

    @property
    def _job(self) -> int:
        """Its number."""

    @property
    def _pool(self) -> Any:
        """The pool, as long as there is no outcome."""

    @property
    def _success(self) -> bool: ...
    @property
    def _value(self) -> Any: ...
    @property
    def _accepted(self) -> bool: ...
    @property
    def _worker_pid(self) -> int | None: ...
    @property
    def _cache(self) -> Any: ...
    @property
    def correlation_id(self) -> Any: ...

@final
class PoolSequence:
    """The results of `imap` for tasks without limits; to its users an `IMapIterator`."""

    def begin(self, pool: Any, func: Any, items: Any, buffer: int | None = None) -> None:
        """What `feed` submits: `func(item)` for the items, so many ahead of the results.

        The pool lives as long as there are more.
        """

    def feed(self, tasks: int, bytes: int) -> bool:
        """Submits tasks until so many (or bytes) wait; True when all have been submitted."""

    def lift(self) -> bool:
        """Has the pool read the input, however far the results are; whether there is any left."""

    def next(self, timeout: float | None = None) -> Any:
        """Waits for the next result: returns the value or raises the task's exception."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def ready(self) -> bool:
        """Whether all results have arrived."""

    def discard(self) -> None:
        """Forgets the job."""

    def _fail(self, info: Any) -> None:
        """The input has failed, at the place that it was read to."""

    def _abandon(self, info: Any) -> None:
        """Nothing more will come: an ExceptionInfo, then the end."""

    @property
    def _job(self) -> int:
        """Its number."""

@final
class Attempt:
    """`with Attempt(lock) as held:` takes a lock if it is free, and lets go of it in the end."""

    def __new__(cls, lock: Any) -> Attempt: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, *_exc_info: object) -> None: ...

@final
class PoolLane:
    """The shared memory of a worker, and through it the pool's. For these two processes."""

    @staticmethod
    def open(index: int, common: int, lane: int, kick: int) -> PoolLane:
        """From copies of the descriptors that `fds` gave, in a worker that was not forked."""

    @property
    def index(self) -> int:
        """The number of the worker."""

    def fds(self) -> tuple[int, int, int, int]:
        """What another process needs to open it: index and descriptors."""

    def admit(self) -> None:
        """Forks get it: what comes next is the fork of the worker itself."""

    def withhold(self) -> None:
        """Forks do not get it any more."""

    @property
    def done(self) -> int:
        """How many outcomes the worker has reported."""

    def close(self) -> None:
        """Closes the descriptor: in a forked child that is not the worker."""

    def announce(self) -> None:
        """In the worker: it is ready for tasks."""

    @property
    def is_up(self) -> bool:
        """Whether the worker has become ready."""

    def send(self, wire: Any, message: Any, notice: bool) -> None:
        """Sends a message that belongs to no task: a notice if it is about the worker itself.

        ValueError if it is too long for the ring.
        """

    def serve(
        self,
        wire: Any,
        prepare: Any | None,
        maxtasks: int,
        is_above: Any | None,
        shall_exit: Any | None,
        fired: list[bool],
    ) -> tuple[int, bool]:
        """Runs tasks until there is a reason to stop: how many, and whether it is the memory."""

    def get(self, wire: Any) -> tuple[int, Any, Any, Any] | None:
        """Waits for a task and accepts it: number, function, arguments, keyword arguments."""

    def put(self, wire: Any, task: int, success: bool, value: Any) -> None:
        """Reports the outcome of the task that `get` gave."""

def resident_kib() -> int:
    """The memory that this process has for itself at the moment, in KiB; 0 if not known."""

def soft_limit_passed() -> bool:
    """Whether the soft limit of the task that runs in this process has passed."""
