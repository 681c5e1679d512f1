import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.traced.extents import (
  Extent,
  atoms,
  concatenation,
  fix,
  product,
  size_kept,
  tie,
  unit_of_entries,
)


def entries(extent, keep):
  """Which entries of the axis stay when only the units `keep` of its atoms do, part by part."""
  extent = extent.resolve()
  if extent.operation == "atom":
    return np.asarray(keep.get(extent, np.arange(extent.size)))
  inner = [entries(part, keep) for part in extent.parts]
  sizes = [part.size for part in extent.parts]
  if extent.operation == "sum":
    starts = np.cumsum([0, *sizes[:-1]])
    return np.concatenate([start + kept for start, kept in zip(starts, inner, strict=True)])
  total = np.zeros(1, int)
  for size, kept in zip(sizes, inner, strict=True):
    total = (total[:, None] * size + kept).reshape(-1)
  return total


def sizes(extent):
  return [atom.size for atom in atoms(extent)]


def test_a_reshape_splits_an_atom():
  axis, heads, columns = Extent(12), Extent(3), Extent(4)
  tie(axis, product([heads, columns]))
  assert list(atoms(axis)) == [heads, columns]
  assert entries(axis, {heads: [0, 2]}).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
  assert entries(axis, {columns: [1]}).tolist() == [1, 5, 9]
  assert unit_of_entries(axis, heads).tolist() == [0] * 4 + [1] * 4 + [2] * 4
  assert unit_of_entries(axis, columns).tolist() == [0, 1, 2, 3] * 3
  assert size_kept(axis, {heads: 2, columns: 1}) == 2


def test_a_concatenation_splits_an_atom():
  axis, left, right = Extent(5), Extent(2), Extent(3)
  tie(axis, concatenation([left, right]))
  assert entries(axis, {right: [0, 2]}).tolist() == [0, 1, 2, 4]
  assert unit_of_entries(axis, right).tolist() == [-1, -1, 0, 1, 2]


def test_two_reshapes_meet_in_their_common_parts():
  axis = Extent(24)
  tie(axis, product([Extent(4), Extent(6)]))
  tie(axis, product([Extent(2), Extent(12)]))
  assert sizes(axis) == [2, 2, 6]


def test_reshapes_that_do_not_nest_stay_whole():
  axis = Extent(6)
  tie(axis, product([Extent(2), Extent(3)]))
  tie(axis, product([Extent(3), Extent(2)]))
  assert all("do not nest" in atom.reason for atom in atoms(axis))


def test_parts_side_by_side_that_become_rows_are_one():
  one, other = Extent(4), Extent(4)
  axis = concatenation([one, other])
  rows, columns = Extent(2), Extent(4)
  tie(axis, product([rows, columns]))
  assert one.resolve() is other.resolve() is columns.resolve()
  assert "one by one" in rows.resolve().reason
  assert columns.resolve().reason is None
  assert entries(axis, {columns.resolve(): [1, 2]}).tolist() == [1, 2, 5, 6]


def test_what_is_tied_to_something_whole_stays_whole():
  a, b, c = Extent(6), Extent(6), Extent(6)
  fix(a, "first")
  tie(a, b)
  tie(product([Extent(2), Extent(3)]), b)
  tie(c, a)
  assert [{atom.reason for atom in atoms(x)} for x in (a, b, c)] == [{"first"}] * 3


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_is_tied_entries_are_those_of_kept_units(data):
  """Against the definition: an entry stays if all units that it belongs to do."""
  draw = data.draw
  cuts = st.lists(st.integers(1, 3), min_size=1, max_size=3)
  axis = Extent(12)
  for _ in range(draw(st.integers(1, 3))):
    if draw(st.booleans()):
      parts = draw(st.sampled_from([(2, 6), (3, 4), (2, 2, 3), (12,), (4, 3), (2, 3, 2)]))
      tie(axis, product([Extent(n) for n in parts]))
    else:
      lengths = draw(cuts)
      tie(axis, concatenation([*map(Extent, lengths), Extent(12 - sum(lengths))]))
  free = [atom for atom in dict.fromkeys(atoms(axis)) if atom.reason is None]
  keep = {
    atom: np.flatnonzero(draw(st.lists(st.booleans(), min_size=atom.size, max_size=atom.size)))
    for atom in free
  }
  stays = np.ones(12, bool)
  for atom, kept in keep.items():
    units = unit_of_entries(axis, atom)
    assert set(units[units >= 0]) == set(range(atom.size))
    stays &= (units < 0) | np.isin(units, kept)
  assert entries(axis, keep).tolist() == np.flatnonzero(stays).tolist()
  assert size_kept(axis, {atom: len(kept) for atom, kept in keep.items()}) == stays.sum()


def test_what_differs_in_size_is_not_tied():
  with pytest.raises(AssertionError):
    tie(Extent(3), Extent(4))
