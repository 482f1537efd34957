"""The Rust core. One section per source file under `src/py`."""

__version__: str

# ---- src/py/util.rs ----

def get_pdeathsig() -> int:
    """The signal that this process gets when its parent dies, 0 for none."""

def set_pdeathsig(sig: int) -> None:
    """Have `sig` sent to this process when its parent dies; OSError if it is no signal."""
