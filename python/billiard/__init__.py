"""billiard: multiprocessing with a pool for services, on a Rust core."""

from . import context

__version__ = "4.3.2+rs.1"

globals().update(
    (name, getattr(context._default_context, name)) for name in context._default_context.__all__
)
__all__ = context._default_context.__all__
