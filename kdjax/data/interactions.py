"""From an interaction log to a split of histories: filters, id maps, splits and their summary."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from kdjax.data import ids, splits
from kdjax.data.errors import DataError, naming
from kdjax.data.summary import describe

Deduplicate = Literal["exact", "pair", "none"]


class Log(NamedTuple):
  """An interaction log as it was read.

  Attributes:
    events: columns `user` and `item` (any type), optionally `timestamp` (int64, seconds), `rating`
      (float) and `label` (float, 0 or 1); rows in file order.
    items: None, or a column `item` with any attributes beside it (`title`, `genres` ...).
    repairs: what the reader mended, as counts by name.
    source: what messages call it, such as the path it was read from.
  """

  events: pl.DataFrame
  items: pl.DataFrame | None = None
  repairs: Mapping[str, int] = {}
  source: str = "the log"


class Sequences(NamedTuple):
  """Histories, one after the other.

  Attributes:
    items: int32 `[N]`, item ids in `[0, V)`, oldest event first within a user.
    offsets: int64 `[U + 1]`; user u owns `items[offsets[u]:offsets[u + 1]]`.

  Example:
    >>> histories = Sequences(np.array([3, 1, 2], np.int32), np.array([0, 2, 2, 3]))
    >>> histories.num_users, histories.row(0).tolist(), histories.row(1).tolist()
    (3, [3, 1], [])
  """

  items: np.ndarray
  offsets: np.ndarray

  @property
  def num_users(self) -> int:
    """U."""
    return len(self.offsets) - 1

  @property
  def lengths(self) -> np.ndarray:
    """Events of each user: int64 `[U]`."""
    return np.diff(self.offsets)

  def row(self, user: int) -> np.ndarray:
    """The history of one user: int32 `[length]`, oldest event first."""
    return self.items[self.offsets[user] : self.offsets[user + 1]]


class Split(NamedTuple):
  """Three parts of every history: the same users in the same order, some empty."""

  train: Sequences
  valid: Sequences
  test: Sequences


class Dataset(NamedTuple):
  """A prepared log.

  Attributes:
    split: training, validation and test histories over users `[0, U)` and items `[0, V)`.
    user_ids: original ids `[U]`; row u is user u.
    item_ids: original ids `[V]`; row i is item i.
    items: attributes `[V]`, row i is item i (null where the log knows nothing); or None.
    events: `user`, `item` (int32), the log's optional columns and `part` (int8: 0 train,
      1 validation, 2 test), by user, then in time order.
    summary: what `describe` says, JSON-ready.
  """

  split: Split
  user_ids: pl.Series
  item_ids: pl.Series
  items: pl.DataFrame | None
  events: pl.DataFrame
  summary: dict[str, Any]

  @property
  def num_users(self) -> int:
    """U."""
    return len(self.user_ids)

  @property
  def num_items(self) -> int:
    """V, the size of the catalogue."""
    return len(self.item_ids)


def prepare(
  log: Log,
  *,
  min_rating: float | None = None,
  min_label_rating: float | None = None,
  k_core: int = 0,
  split: splits.SplitRule = "leave_one_out",
  valid_fraction: float = 0.1,
  test_fraction: float = 0.1,
  deduplicate: Deduplicate = "exact",
  min_sequence: int = 4,
) -> Dataset:
  """Filters a log, numbers its users and items, and splits every history.

  In this order: duplicates, rating threshold, iterative k-core, ids, time order (events of the
  same second, or of a log without timestamps, stay in file order), split.

  Args:
    log: from `kdjax.data.sources.load`, `kdjax.data.synthetic.generate` or by hand.
    min_rating: events rated lower are dropped; needs a `rating` column.
    min_label_rating: sets `label` to `rating >= min_label_rating`, and drops nothing.
    k_core: every user and every item keeps at least so many events; 0 or 1 filters nothing.
    split: `leave_one_out` (last event test, second last validation), `time` (two moments for all
      users) or `ratio` (shares of each history, the latest last).
    valid_fraction: of the events, for `time` and `ratio`.
    test_fraction: of the events, for `time` and `ratio`.
    deduplicate: `exact` keeps the first of events with the same user, item and timestamp (no-op
      without timestamps, where a repeat may be meant); `pair` keeps a user's first event with an
      item; `none` keeps all.
    min_sequence: for `leave_one_out` and `ratio`, users with fewer events stay in training whole.
      The default leaves at least two training events, one step to learn from.

  Returns:
    The dataset; ids follow the sorted order of the original ids.

  Raises:
    DataError: if a column that an option needs is missing, a user or item is null, or a filter
      leaves no event; the message names the filter and the number of events before it.
    ValueError: if an option is outside its range.

  Example:
    >>> log = Log(pl.DataFrame({"user": ["b", "a", "a", "a", "a"], "item": [30, 10, 20, 30, 40]}))
    >>> data = prepare(log)
    >>> data.split.train.row(0).tolist(), data.split.test.row(0).tolist()
    ([0, 1], [3])
    >>> data.user_ids.to_list(), data.item_ids.to_list()
    (['a', 'b'], [10, 20, 30, 40])
  """
  _check_options(min_sequence, valid_fraction, test_fraction, split)
  events, repairs = log.events, dict(log.repairs)
  with naming(log.source):
    _check_events(events)
    events = _drop_duplicates(events, deduplicate, repairs)
    if min_rating is not None:
      _require(events, "rating", "min_rating")
      kept = events.filter(pl.col("rating") >= min_rating)
      events = _not_empty(kept, f"min_rating={min_rating:g}", events.height)
    if min_label_rating is not None:
      _require(events, "rating", "min_label_rating")
      label = (pl.col("rating") >= min_label_rating).cast(pl.Float32)
      events = events.with_columns(label.alias("label"))
    user, user_ids = ids.encode(events["user"])
    item, item_ids = ids.encode(events["item"])
    if k_core > 1:
      mask = splits.k_core_mask(user, item, k_core)
      events = _not_empty(events.filter(mask), f"k_core={k_core}", len(mask))
      user, user_ids = ids.recode(user[mask], user_ids)
      item, item_ids = ids.recode(item[mask], item_ids)

  timestamp = events["timestamp"].to_numpy() if "timestamp" in events.columns else None
  # lexsort is stable: events of one second keep the file's order.
  order = np.lexsort((user,) if timestamp is None else (timestamp, user))
  user, item = user[order], item[order]
  rest = {
    name: events[name].gather(order) for name in events.columns if name not in ("user", "item")
  }
  offsets = np.zeros(len(user_ids) + 1, np.int64)
  np.cumsum(np.bincount(user, minlength=len(user_ids)), out=offsets[1:])
  short = int((np.diff(offsets) < min_sequence).sum())
  if short and split != "time":
    repairs[f"users with fewer than {min_sequence} events kept in training whole"] = short
  if split == "time":
    with naming(log.source):
      if timestamp is None:
        raise DataError("split='time' needs a timestamp column; name it, or use 'leave_one_out'")
      part = splits.by_time(
        timestamp[order], valid_fraction=valid_fraction, test_fraction=test_fraction
      )
  elif split == "ratio":
    part = splits.by_ratio(
      offsets,
      valid_fraction=valid_fraction,
      test_fraction=test_fraction,
      min_sequence=min_sequence,
    )
  else:
    part = splits.leave_one_out(offsets, min_sequence=min_sequence)

  dataset = Dataset(
    split=Split(*(_histories(user, item, part == p, len(user_ids)) for p in range(3))),
    user_ids=user_ids,
    item_ids=item_ids,
    items=None if log.items is None else _align_items(log.items, item_ids, repairs),
    events=pl.DataFrame({"user": user, "item": item, **rest, "part": part}),
    summary={"repairs": repairs},
  )
  return dataset._replace(summary=describe(dataset))


def _check_options(min_sequence, valid_fraction, test_fraction, split) -> None:
  if min_sequence < 3:
    raise ValueError(f"min_sequence must be at least 3 (train, valid, test), got {min_sequence}")
  if min(valid_fraction, test_fraction) < 0 or valid_fraction + test_fraction >= 1:
    raise ValueError(
      "valid_fraction and test_fraction must not be negative and sum to less than 1,"
      f" got {valid_fraction} and {test_fraction}"
    )
  if split not in ("leave_one_out", "time", "ratio"):
    raise ValueError(f"split must be 'leave_one_out', 'time' or 'ratio', got {split!r}")


def _check_events(events: pl.DataFrame) -> None:
  for name in ("user", "item"):
    _require(events, name, "every log")
  for name in ("user", "item", "timestamp"):
    if name in events.columns and events[name].null_count():
      row = events[name].is_null().arg_max()
      raise DataError(f"event {row} (from 0) has no {name}; fill it in or drop the event")
  if not events.height:
    raise DataError("no events; check that the right file was read")


def _require(events: pl.DataFrame, column: str, who: str) -> None:
  if column not in events.columns:
    raise DataError(f"{who} needs a {column} column; there are {', '.join(events.columns)}")


def _not_empty(events: pl.DataFrame, name: str, before: int) -> pl.DataFrame:
  if not events.height:
    raise DataError(f"{name} removed all {before:,} events; choose a lower value")
  return events


def _drop_duplicates(
  events: pl.DataFrame, deduplicate: Deduplicate, repairs: dict[str, int]
) -> pl.DataFrame:
  subset = ["user", "item"] if deduplicate == "pair" else ["user", "item", "timestamp"]
  if deduplicate == "none" or not set(subset) <= set(events.columns):
    return events
  # Counting is much cheaper than dropping, and most logs have nothing to drop.
  if events.select(pl.struct(subset).n_unique()).item() == events.height:
    return events
  kept = events.unique(subset, keep="first", maintain_order=True)
  repairs["duplicate events dropped"] = events.height - kept.height
  return kept


def _histories(user, item, mask, num_users: int) -> Sequences:
  offsets = np.zeros(num_users + 1, np.int64)
  np.cumsum(np.bincount(user[mask], minlength=num_users), out=offsets[1:])
  return Sequences(item[mask], offsets)


def _align_items(items: pl.DataFrame, item_ids: pl.Series, repairs: dict[str, int]) -> pl.DataFrame:
  items = items.with_columns(pl.col("item").cast(item_ids.dtype, strict=False))
  unique = items.unique("item", keep="first", maintain_order=True)
  if unique.height < items.height:
    repairs["duplicate items dropped"] = items.height - unique.height
  return pl.DataFrame({"item": item_ids}).join(unique, on="item", how="left", maintain_order="left")
