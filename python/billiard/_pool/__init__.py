"""The inside of :mod:`billiard.pool`: one book, several drives.

The *book* knows jobs, results, callbacks, workers, limits of restarts. A *drive* knows how a task
gets to a worker, how a result comes back, how a death or a deadline is noticed.

```
 apply_async, map, imap ...      submit.py     makes a job in the book, hands its tasks to the drive
        │
      Pool                       book.py       workers: start, reap, replace, grow, shrink, close
        │  results.py  the jobs: ApplyResult, MapResult, IMapIterator
        │  hooks.py    where subclasses take part
        │
      Drive                      drive.py      the seam; everything under it can be exchanged
        ├── PassiveDrive         drive.py      threads=False: Celery's AsynPool overrides the hooks
        ├── NativeDrive          native.py     threads=True: the engine, which is in Rust
        │     ├── Supervision    supervision.py its workers: start, watch, replace, end
        │     └── Lane           lane.py       a worker's end of it
        └── ThreadPoolDrive      threadpool.py workers that are threads
      Worker                     worker.py     what runs in the child; wire.py pickles for it
      PoolThread and its kinds   handlers.py   the public handler classes, active in some drives
```

Imports go downwards. Classes that users see say that they live in ``billiard.pool``.
"""
