"""The C extension of billiard 4.3.2, by its old name: Celery and others import from it."""

from billiard._core import SemLock, address_of_buffer, read, recvfd, sem_unlink, sendfd

__all__ = ["SemLock", "address_of_buffer", "flags", "read", "recvfd", "sem_unlink", "sendfd"]

#: what the platform has
flags = {"HAVE_SEM_OPEN": 1, "HAVE_SEM_TIMEDWAIT": 1, "HAVE_FD_TRANSFER": 1}
