"""How array axes are made of units, found out by saying which axes are the same.

The length of an axis is an extent: an atom (units that are removed one by one), a product (heads
times columns, after a reshape) or a sum (the parts of a concatenation). `tie` makes two extents one
and splits atoms as far as that needs; `fix` marks what must stay whole, and why.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np


class Extent:
  """A node of a union-find forest; `resolve` gives the one that stands for it.

  Attributes:
    size: entries.
    operation: "atom", "product" or "sum".
    parts: of a product (the first one is major) or a sum, in order.
    reason: why an atom must stay whole, or None.
  """

  def __init__(self, size: int, operation: str = "atom", parts: Sequence["Extent"] = ()):
    self.size = size
    self.operation = operation
    self.parts = tuple(parts)
    self.reason: str | None = None
    self._same: Extent | None = None

  def resolve(self) -> "Extent":
    """The extent that this one was tied to, at last."""
    found = self
    while found._same is not None:
      found = found._same
    if found is not self:
      self._same = found
    return found

  def become(self, other: "Extent") -> None:
    """From now on `other` stands for this one as well."""
    self._same = other
    if self.reason is not None:
      fix(other, self.reason)


def product(parts: Sequence[Extent]) -> Extent:
  """A product; parts of size 1 count for nothing."""
  flat = [q for p in parts for q in _flat(p, "product") if q.size != 1]
  if len(flat) == 1:
    return flat[0]
  return Extent(math.prod(p.size for p in flat), "product", flat) if flat else Extent(1)


def concatenation(parts: Sequence[Extent]) -> Extent:
  """A sum; empty parts count for nothing."""
  flat = [q for p in parts for q in _flat(p, "sum") if q.size]
  return flat[0] if len(flat) == 1 else Extent(sum(p.size for p in flat), "sum", flat)


def atoms(extent: Extent) -> Iterator[Extent]:
  """The atoms that it is made of; one may come several times."""
  extent = extent.resolve()
  if extent.operation == "atom":
    yield extent
  for part in extent.parts:
    yield from atoms(part)


def fix(extent: Extent, reason: str) -> None:
  """All atoms of it must stay whole. The first reason is kept."""
  for atom in atoms(extent):
    atom.reason = atom.reason or reason


def tie(a: Extent, b: Extent) -> None:
  """Makes two extents of one size the same, entry by entry."""
  a, b = a.resolve(), b.resolve()
  if a is b or a.size == b.size == 1:
    return
  assert a.size == b.size, (a.size, b.size)
  if a.operation == "atom":
    a.become(b)
  elif b.operation == "atom":
    b.become(a)
  elif a.operation == b.operation:
    _align(a, b)
    a.become(b)
  else:
    whole, parts = (a, b) if a.operation == "product" else (b, a)
    # [k, rest] beside a sum: k equal pieces, all of them `rest`, of which none may go.
    first, *rest = _flat(whole, "product")
    pieces = [Extent(whole.size // first.size) for _ in range(first.size)]
    tie(parts, concatenation(pieces))
    fix(first, f"its {first.size} parts are taken one by one")
    for piece in pieces:
      tie(piece, product(rest))
    parts.resolve().become(whole.resolve())


def unit_of_entries(extent: Extent, atom: Extent) -> np.ndarray:
  """int `[size]`: which unit of the atom each entry of the axis belongs to, -1 for none."""
  extent = extent.resolve()
  if extent.operation == "atom":
    return np.arange(extent.size) if extent is atom else np.full(extent.size, -1)
  inner = [unit_of_entries(part, atom) for part in extent.parts]
  if extent.operation == "sum":
    return np.concatenate(inner)
  total = np.full(1, -1)
  for units in inner:
    # At most one part of a product speaks: a square of units has none that is a row.
    total = np.maximum(total[:, None], units).reshape(-1)
  return total


def size_kept(extent: Extent, kept: Mapping[Extent, int]) -> int:
  """How many entries stay when so many units of its atoms do."""
  extent = extent.resolve()
  if extent.operation == "atom":
    return kept.get(extent, extent.size)
  sizes = [size_kept(part, kept) for part in extent.parts]
  return math.prod(sizes) if extent.operation == "product" else sum(sizes)


def _flat(extent: Extent, operation: str) -> list[Extent]:
  """Its parts if it is such an operation, with those of the same kind among them opened."""
  extent = extent.resolve()
  if extent.operation != operation:
    return [extent]
  return [inner for part in extent.parts for inner in _flat(part, operation)]


def _align(a: Extent, b: Extent) -> None:
  """Ties the parts of two products or two sums, splitting the longer of two that meet."""
  join = product if a.operation == "product" else concatenation
  left, right = ([*reversed(_flat(x, x.operation))] for x in (a, b))
  while left and right:
    x, y = left.pop(), right.pop()
    if x.size == y.size:
      tie(x, y)
      continue
    long, short = (x, y) if x.size > y.size else (y, x)
    if join is product and long.size % short.size:
      for part in (x, y, *left, *right):
        fix(part, f"lengths {x.size} and {y.size} of two reshapes do not nest")
      return
    rest = Extent(long.size // short.size if join is product else long.size - short.size)
    tie(long, join([short, rest]))
    (left if long is x else right).append(rest)
