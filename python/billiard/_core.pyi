"""The Rust core. One section per source file under `src/py`."""

__version__: str
