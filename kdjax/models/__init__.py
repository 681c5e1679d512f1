"""One file a model family; every one is a `Model`, a pair of pure functions."""

from kdjax.models.linen import from_linen
from kdjax.models.sasrec import make_sasrec

__all__ = ["from_linen", "make_sasrec"]
