"""Rows of other tokens beside packed ones, against a loop over the texts."""

import numpy as np
import pytest

from kdjax.data import pack_rows
from kdjax.data.retokenized import pack_beside


@pytest.mark.parametrize("shift", [0, 1, -1])
def test_places_are_those_of_a_loop(shift):
  rng = np.random.default_rng(0)
  sizes = rng.integers(0, 9, (2, 50))  # Texts without tokens, or with one alone, too.
  first, other = (np.arange(1000 * i, 1000 * i + total) for i, total in enumerate(sizes.sum(1)))
  offsets = [np.concatenate([[0], np.cumsum(size)]) for size in sizes]
  packed, ends = pack_rows(first.astype(np.int32), offsets[0], length=12)
  found = pack_beside(other.astype(np.int32), offsets[1], packed, ends, shift=shift)
  seen = 0
  for row in range(len(packed["items"])):
    for column in range(12):
      place = found["places"][row, column]
      if packed["segments"][row, column] == 0:
        assert place == -1
        continue
      token, number = packed["items"][row, column], packed["positions"][row, column] + shift
      text = np.searchsorted(offsets[0], token, side="right") - 1
      if not 0 <= number < sizes[1][text] - 1:
        assert place == -1
        continue
      seen += 1
      assert found["tokens"][row, place] == other[offsets[1][text] + number]
      assert found["positions"][row, place] == number
      assert found["segments"][row, place] == packed["segments"][row, column]
  assert seen > 50
  real = found["tokens"] >= 0
  assert ((found["segments"] > 0) == real).all()
  texts = ends[:, 0]
  assert real.sum() == np.maximum(sizes[1][texts] - 1, 0).sum()


def test_a_text_in_two_windows_is_refused():
  packed, ends = pack_rows(np.arange(9, dtype=np.int32), np.array([0, 9]), length=4)
  with pytest.raises(ValueError, match="longer than a row lies in several windows"):
    pack_beside(np.arange(5), np.array([0, 5]), packed, ends)
