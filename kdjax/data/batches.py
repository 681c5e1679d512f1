"""From histories to batches: rows packed without padding, and an order every run can repeat."""

from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np

from kdjax.types import MASK, PAD

Arrays = Mapping[str, np.ndarray]  # Row i of every array is example i.
RUN = 8  # Steps in a row on rows of like lengths, where these decide the order.


def pack_rows(
  items: np.ndarray,
  offsets: np.ndarray,
  *,
  length: int,
  labels: bool = True,
  all_windows: bool = True,
  seed: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Packs histories of every length into rows with next to no padding.

  A history is cut into windows of at most `length` positions, counted from its end; windows are
  then laid side by side by best-fit decreasing, so that a model computes on real positions only.
  `segments` tells the windows of a row apart and `positions` restarts in each.

  Args:
    items: int32 `[N]`, the histories one after the other, oldest event first.
    offsets: int64 `[U + 1]`, history u is `items[offsets[u]:offsets[u + 1]]`.
    length: positions of a row, at least 1.
    labels: True makes the next item the label (the last event is then a label only); False packs
      every event and leaves `labels` PAD.
    all_windows: False keeps the last window of each history only.
    seed: of the shuffle that decides which histories share a row.

  Returns:
    A dict of int32 `[R, length]` arrays `items`, `segments`, `positions`, `labels`, and the number
    of the history that every window came from with the flat position of its last event,
    int64 `[W, 2]` in the order of the windows (`row * length + column`).

  Raises:
    ValueError: if `length` is below 1.

  Example:
    >>> rows, _ = pack_rows(np.array([5, 6, 7, 8, 9]), np.array([0, 3, 5]), length=3)
    >>> rows["items"].tolist(), rows["labels"].tolist()
    ([[5, 6, 8]], [[6, 7, 9]])
    >>> rows["segments"].tolist(), rows["positions"].tolist()
    ([[1, 1, 2]], [[0, 1, 0]])
  """
  if length < 1:
    raise ValueError(f"length must be at least 1, got {length}")
  counts = np.maximum(np.diff(offsets) - int(labels), 0)
  windows = -(-counts // length) if all_windows else np.minimum(counts, 1)
  user = np.repeat(np.arange(len(counts)), windows)
  # Windows are counted back from the end of the history, so that the newest one is full.
  back = np.arange(len(user)) - np.repeat(np.cumsum(windows) - windows, windows)
  stop = offsets[:-1][user] + counts[user] - back * length
  size = np.minimum(counts[user] - back * length, length)
  start = stop - size

  shuffle = np.random.default_rng(seed).permutation(len(user))
  row, column = np.empty(len(user), np.int64), np.empty(len(user), np.int64)
  row[shuffle], column[shuffle], num_rows = _best_fit(size[shuffle], length)

  by_place = np.lexsort((column, row))
  first = np.r_[True, np.diff(row[by_place]) > 0] if len(user) else np.zeros(0, bool)
  nth = np.arange(len(user)) - np.maximum.accumulate(np.where(first, np.arange(len(user)), 0))
  segment = np.empty(len(user), np.int64)
  segment[by_place] = nth + 1

  position = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
  source = np.repeat(start, size) + position
  target = np.repeat(row * length + column, size) + position
  out = {
    "items": np.full(num_rows * length, PAD, np.int32),
    "segments": np.zeros(num_rows * length, np.int32),
    "positions": np.zeros(num_rows * length, np.int32),
    "labels": np.full(num_rows * length, PAD, np.int32),
  }
  out["items"][target] = items[source]
  out["segments"][target] = np.repeat(segment, size)
  out["positions"][target] = position
  if labels:
    out["labels"][target] = items[source + 1]
  ends = np.stack([user, row * length + column + size - 1], axis=1)
  return {name: values.reshape(num_rows, length) for name, values in out.items()}, ends


def _best_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, int]:
  """Best-fit decreasing: row and first column of every piece, and how many rows.

  Pieces of one size and rows of one remaining capacity are handled as groups, so the loop runs over
  sizes and capacities, never over pieces.
  """
  row, column = np.empty(len(sizes), np.int64), np.empty(len(sizes), np.int64)
  open_rows: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]  # By space left.
  num_rows = 0
  if not len(sizes):
    return row, column, 0
  order = np.argsort(-sizes, kind="stable")
  values, firsts = np.unique(-sizes[order], return_index=True)
  for size, pieces in zip(-values, np.split(order, firsts[1:]), strict=True):
    space = size
    while len(pieces) and space <= capacity:
      rows = np.concatenate(open_rows[space]) if open_rows[space] else np.empty(0, np.int64)
      if not len(rows):
        space += 1
        continue
      used, open_rows[space] = rows[: len(pieces)], [rows[len(pieces) :]]
      row[pieces[: len(used)]], column[pieces[: len(used)]] = used, capacity - space
      open_rows[space - size].append(used)
      pieces = pieces[len(used) :]
      space = size
    if len(pieces):
      each = capacity // size
      nth = np.arange(len(pieces))
      row[pieces], column[pieces] = num_rows + nth // each, nth % each * size
      new = -(-len(pieces) // each)
      fill = np.minimum(len(pieces) - np.arange(new) * each, each)
      for count in np.unique(fill):
        open_rows[capacity - count * size].append(num_rows + np.flatnonzero(fill == count))
      num_rows += new
  return row, column, num_rows


def history_batch(histories: list[np.ndarray], *, length: int) -> dict[str, np.ndarray]:
  """One request a row: the last `length` events of each history, aligned to the left.

  Args:
    histories: int arrays of item ids, oldest first; an empty one gives an all-PAD row.
    length: positions of a row.

  Returns:
    The sequence batch, int32 `[len(histories), length]` each, `labels` PAD.

  Example:
    >>> history_batch([np.array([3, 4]), np.array([7, 8, 9, 1])], length=3)["items"].tolist()
    [[3, 4, -1], [8, 9, 1]]
  """
  items = np.full((len(histories), length), PAD, np.int32)
  for row, history in zip(items, histories, strict=True):
    tail = history[-length:]
    row[: len(tail)] = tail
  return complete(items)


def complete(items: np.ndarray) -> dict[str, np.ndarray]:
  """The sequence batch of rows that hold one history each, aligned to the left."""
  segments = (items != PAD).astype(np.int32)
  positions = np.broadcast_to(np.arange(items.shape[1], dtype=np.int32), items.shape)
  return {
    "items": items,
    "segments": segments,
    "positions": positions * segments,
    "labels": np.full_like(items, PAD),
  }


def append_mask(items: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Every history with MASK after its last event: what a masked model predicts from.

  Example:
    >>> [x.tolist() for x in append_mask(np.array([5, 6, 7]), np.array([0, 2, 3]))]
    [[5, 6, -2, 7, -2], [0, 3, 5]]
  """
  return np.insert(items, offsets[1:], MASK), offsets + np.arange(len(offsets))


def round_lengths(sizes: np.ndarray, longest: int, *, per_octave: int = 4) -> np.ndarray:
  """The next of few lengths, `per_octave` between a power of two and the next, `longest` at most.

  Args:
    sizes: int `[N]`, how many positions are needed.
    longest: how many there are.
    per_octave: how many lengths from one power of two on, from 8 on.

  Returns:
    int `[N]`, none below its size where that is `longest` at most.

  Example:
    >>> round_lengths(np.array([1, 9, 17, 33, 50]), 48).tolist()
    [8, 10, 20, 40, 48]
  """
  edges = [
    round(2**octave * (1 + part / per_octave))
    for octave in range(3, 30)
    for part in range(per_octave)
  ]
  return np.minimum(np.array(edges)[np.searchsorted(edges, sizes)], longest)


def epoch_order(
  num_rows: int, batch_size: int, *, seed: int, epoch: int, lengths: np.ndarray | None = None
) -> np.ndarray:
  """Which rows every step of an epoch takes: int32 `[steps, batch_size]`.

  A pure function of its arguments, so a resumed run needs no iterator state. Rows that do not fill
  a last batch wait for another epoch's shuffle; fewer rows than one batch make a single step.

  Args:
    num_rows: R.
    batch_size: rows of a batch.
    seed: of the shuffles.
    epoch: every one has its own.
    lengths: int `[R]`, or None. Rows of a length then come together, in an order of their own every
      epoch, in runs of `RUN` steps whose order is drawn.

  Example:
    >>> epoch_order(5, 2, seed=0, epoch=0).shape
    (2, 2)
    >>> lengths = np.array([8, 16, 8, 16])
    >>> lengths[epoch_order(4, 2, seed=0, epoch=0, lengths=lengths)].tolist()
    [[8, 8], [16, 16]]
  """
  rng = np.random.default_rng([seed, epoch])
  order = rng.permutation(num_rows).astype(np.int32)
  batch_size = min(batch_size, num_rows)
  steps = num_rows // batch_size
  order = order[: steps * batch_size]
  if lengths is not None:
    order = order[np.argsort(lengths[order], kind="stable")]
  order = order.reshape(steps, batch_size)
  if lengths is not None:
    runs = np.array_split(order, -(-steps // RUN))
    order = np.concatenate([runs[place] for place in rng.permutation(len(runs))])
  # Sorted within a batch: the loss does not mind, and a memory-mapped file is read forwards.
  return np.sort(order, axis=1)


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
  """How many steps `epoch_order` gives."""
  return num_rows // min(batch_size, num_rows)


class _Steps:
  """Random access to batches by step, for grain: the very batches of `epoch_order`."""

  def __init__(
    self,
    arrays: Arrays,
    batch_size: int,
    seed: int,
    num_epochs: int,
    own: np.ndarray | slice,
  ):
    self._arrays, self._batch_size, self._seed, self._own = arrays, batch_size, seed, own
    self._num_rows = len(next(iter(arrays.values())))
    self._per_epoch = steps_per_epoch(self._num_rows, batch_size)
    self._length = self._per_epoch * num_epochs
    self._cached: tuple[int, np.ndarray] | None = None

  def __len__(self) -> int:
    return self._length

  def __repr__(self) -> str:
    return f"Steps({self._num_rows} rows, batch_size={self._batch_size}, seed={self._seed})"

  def __getitem__(self, step) -> dict[str, np.ndarray]:
    epoch, nth = divmod(int(step), self._per_epoch)
    cached = self._cached
    if cached is None or cached[0] != epoch:
      order = epoch_order(self._num_rows, self._batch_size, seed=self._seed, epoch=epoch)
      self._cached = cached = (epoch, order)
    rows = cached[1][nth][self._own]
    return {name: np.asarray(values[rows]) for name, values in self._arrays.items()}


def stream(
  arrays: Arrays,
  batch_size: int,
  *,
  seed: int,
  num_epochs: int,
  start: int = 0,
  own: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches read ahead by threads, from arrays that may be memory-mapped and beyond any memory.

  Step k holds the rows that `epoch_order` gives for it, whatever `start` is. The iterator has
  grain's `get_state` and `set_state`.

  Args:
    arrays: rows by name, NumPy arrays or memory maps of one leading size.
    batch_size: rows of a batch.
    seed: of the shuffles.
    num_epochs: after which the iterator ends.
    start: the first step to give.
    own: int `[n]`, which rows of every batch are read; all when not given.
  """
  wanted = slice(None) if own is None else own
  steps = grain.MapDataset.source(_Steps(arrays, batch_size, seed, num_epochs, wanted))
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
  iterator: Any = iter(steps.to_iter_dataset(options))
  if start:
    iterator.set_state({**iterator.get_state(), "next_index": start})
  return iterator
