"""The same texts in another model's tokens, laid beside rows that are packed already."""

from collections.abc import Mapping

import numpy as np

from kdjax.types import PAD


def pack_beside(
  tokens: np.ndarray,
  offsets: np.ndarray,
  rows: Mapping[str, np.ndarray],
  ends: np.ndarray,
  *,
  shift: int = 0,
) -> dict[str, np.ndarray]:
  """Packs texts in other tokens into the rows that they have in the first ones.

  Row i holds the same texts in both, in the same order. Positions belong together by their number
  in the text, as far as both go; nothing else is common to two tokenizers.

  Args:
    tokens: int32 `[N]`, the texts in the other tokens one after the other. A text's last token is
      predicted only, as in `pack_rows`.
    offsets: int64 `[U + 1]`, text u is `tokens[offsets[u]:offsets[u + 1]]`.
    rows: of `pack_rows` over the same texts in the first tokens; `segments` and `positions` are
      read, int `[R, L]`.
    ends: `[W, 2]` of the same call.
    shift: of the number in the text: how many more tokens the other tokenizer puts before it.

  Returns:
    int32 `tokens`, `segments`, `positions` `[R, M]`, M being the longest row's, and `places`
    `[R, L]`: the column of the other tokens that belongs to each of the first, -1 for none.

  Raises:
    ValueError: if a text lies in more than one window: its parts have no common positions.

  Example:
    >>> from kdjax.data import pack_rows
    >>> first = np.array([5, 6, 7, 8, 9]), np.array([0, 3, 5])
    >>> packed, ends = pack_rows(*first, length=3)
    >>> found = pack_beside(np.array([1, 2, 3, 4, 2, 3]), np.array([0, 2, 6]), packed, ends)
    >>> packed["items"].tolist(), found["tokens"].tolist(), found["places"].tolist()
    ([[5, 6, 8]], [[1, 3, 4, 2]], [[0, -1, 1]])
  """
  texts, flat = ends[:, 0], ends[:, 1]
  if len(np.unique(texts)) < len(texts):
    raise ValueError("a text longer than a row lies in several windows; cut it to one")
  num_rows, length = rows["segments"].shape
  row, segment = flat // length, rows["segments"].reshape(-1)[flat]
  order = np.lexsort((segment, row))
  texts, row, segment = texts[order], row[order], segment[order]
  size = np.maximum(np.diff(offsets)[texts] - 1, 0)
  before = np.cumsum(size) - size
  first = np.searchsorted(row, np.arange(num_rows))  # Every row holds a text.
  column = before - before[first][row]
  width = int(max(1, np.bincount(row, size, num_rows).max(initial=0)))
  position = np.arange(size.sum()) - np.repeat(before, size)
  target = np.repeat(row * width + column, size) + position
  found = {
    "tokens": np.full(num_rows * width, PAD, np.int32),
    "segments": np.zeros(num_rows * width, np.int32),
    "positions": np.zeros(num_rows * width, np.int32),
  }
  found["tokens"][target] = tokens[np.repeat(offsets[texts], size) + position]
  found["segments"][target] = np.repeat(segment, size)
  found["positions"][target] = position
  result = {name: values.reshape(num_rows, width) for name, values in found.items()}
  # The window of every position, and of what is padding the last one's by wrapping around.
  nth = first[:, None] + rows["segments"] - 1
  number = rows["positions"] + shift
  there = (rows["segments"] > 0) & (number >= 0) & (number < size[nth])
  result["places"] = np.where(there, column[nth] + number, -1).astype(np.int32)
  return result
