"""A function as data: its operations, and which axes of its values are the same."""

from kdjax.traced.extents import Extent, atoms, size_kept, unit_of_entries
from kdjax.traced.follow import Traced, follow
from kdjax.traced.observe import Moments, Observed, moments, observe_inputs
from kdjax.traced.replay import run

__all__ = [
  "Extent",
  "Moments",
  "Observed",
  "Traced",
  "atoms",
  "follow",
  "moments",
  "observe_inputs",
  "run",
  "size_kept",
  "unit_of_entries",
]
