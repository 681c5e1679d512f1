"""Preparation: filters against a slow oracle, splits against their definitions."""

import hypothesis
import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

from kdjax.data import ids, splits, synthetic
from kdjax.data.errors import DataError
from kdjax.data.interactions import Log, Sequences, prepare
from kdjax.data.summary import describe, format_summary

EVENTS = st.lists(
  st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(0, 20)), min_size=1, max_size=60
)
SETTINGS = hypothesis.settings(max_examples=60, deadline=None)


def make_log(events, **columns):
  frame = pl.DataFrame(events, schema=["user", "item", "timestamp"], orient="row")
  return Log(frame.with_columns(**{name: pl.Series(v) for name, v in columns.items()}))


def by_user(data):
  """All parts of every user's history, in order, with original ids."""
  return {
    data.user_ids[u]: [[data.item_ids[i] for i in part.row(u).tolist()] for part in data.split]
    for u in range(data.num_users)
  }


@SETTINGS
@hypothesis.given(events=EVENTS, k=st.integers(2, 4))
def test_k_core_is_the_fixed_point_of_dropping_one_at_a_time(events, k):
  left = list(events)
  changed = True
  while changed:
    changed = False
    for column in (0, 1):
      for value in {e[column] for e in left}:
        if sum(e[column] == value for e in left) < k:
          left = [e for e in left if e[column] != value]
          changed = True
  user, item, _ = (np.array(c) for c in zip(*events, strict=True))
  mask = splits.k_core_mask(user, item, k)
  assert [e for e, m in zip(events, mask, strict=True) if m] == left
  if left:
    data = prepare(make_log(events), k_core=k, deduplicate="none")
    assert data.events.height == len(left)
  else:
    with pytest.raises(DataError, match=f"k_core={k} removed all {len(events)} events"):
      prepare(make_log(events), k_core=k, deduplicate="none")


@SETTINGS
@hypothesis.given(events=EVENTS, least=st.integers(3, 5))
def test_leave_one_out_in_stable_time_order(events, least):
  data = prepare(make_log(events), deduplicate="none", min_sequence=least)
  want = {}
  for user in sorted({e[0] for e in events}):
    # sorted() is stable: ties in time keep the order of the file.
    items = [e[1] for e in sorted((e for e in events if e[0] == user), key=lambda e: e[2])]
    long = len(items) >= least
    want[user] = [items[:-2], items[-2:-1], items[-1:]] if long else [items, [], []]
  assert by_user(data) == want
  part = data.events["part"].to_numpy()
  assert [int((part == p).sum()) for p in range(3)] == [len(s.items) for s in data.split]


@SETTINGS
@hypothesis.given(events=EVENTS)
def test_split_by_time_never_shows_the_future(events):
  try:
    data = prepare(make_log(events), split="time", valid_fraction=0.2, test_fraction=0.2)
  except DataError:
    assert len({e[2] for e in events}) < len(events)
    return
  times = [data.events.filter(pl.col("part") == p)["timestamp"] for p in range(3)]
  for earlier, later in ((0, 1), (1, 2), (0, 2)):
    if len(times[earlier]) and len(times[later]):
      assert times[earlier].max() < times[later].min()


@SETTINGS
@hypothesis.given(events=EVENTS)
def test_split_by_ratio_counts(events):
  data = prepare(
    make_log(events), split="ratio", valid_fraction=0.25, test_fraction=0.3, deduplicate="none"
  )
  for u in range(data.num_users):
    train, valid, test = (len(part.row(u)) for part in data.split)
    total = train + valid + test
    want = (max(1, total * 25 // 100), max(1, total * 30 // 100)) if total >= 4 else (0, 0)
    assert (valid, test) == want
    assert train >= 1


def test_dtypes_and_shapes_are_the_contract():
  data = prepare(make_log([(5, 1, 3), (5, 2, 1), (9, 1, 2)]))
  for part in data.split:
    assert part.items.dtype == np.int32
    assert part.offsets.dtype == np.int64
    assert part.num_users == 2
  assert data.events.schema == {
    "user": pl.Int32, "item": pl.Int32, "timestamp": pl.Int64, "part": pl.Int8
  }  # fmt: skip
  assert data.split.train.row(0).tolist() == [1, 0]


def test_rating_threshold_and_labels():
  log = make_log([(1, 1, 1), (1, 2, 2), (1, 3, 3)], rating=[2.0, 4.0, 5.0])
  data = prepare(log, min_rating=4, min_label_rating=5)
  assert data.item_ids.to_list() == [2, 3]
  assert data.events["label"].to_list() == [0.0, 1.0]
  with pytest.raises(DataError, match=r"min_rating=6 removed all 3 events"):
    prepare(log, min_rating=6)
  with pytest.raises(DataError, match="min_rating needs a rating column"):
    prepare(make_log([(1, 1, 1)]), min_rating=3)


def test_duplicates_are_dropped_and_counted():
  events = [(1, 7, 5), (1, 8, 6), (1, 7, 5), (1, 7, 9)]
  name = "duplicate events dropped"
  kept = {mode: prepare(make_log(events), deduplicate=mode) for mode in ("exact", "pair", "none")}
  assert [d.events.height for d in kept.values()] == [3, 2, 4]
  assert [d.summary["repairs"].get(name, 0) for d in kept.values()] == [1, 2, 0]
  # Without timestamps a repeat may be meant.
  log = Log(pl.DataFrame({"user": [1, 1], "item": [2, 2]}))
  assert prepare(log).events.height == 2


def test_items_line_up_and_unknown_items_are_null():
  items = pl.DataFrame({"item": ["3", "1", "9", "1"], "title": ["c", "a", "z", "again"]})
  data = prepare(make_log([(1, 1, 1), (1, 2, 2), (1, 3, 3)])._replace(items=items))
  assert data.items["title"].to_list() == ["a", None, "c"]
  assert data.summary["repairs"]["duplicate items dropped"] == 1


def test_ids_survive_the_disk(tmp_path):
  for events in ([(2**40, 1, 1), (-3, 2**62, 2)], [("ü", "a b", 1), ("", "\t", 2)]):
    data = prepare(make_log(events))
    ids.save_ids(data, tmp_path)
    users, items = ids.load_ids(tmp_path)
    assert users.to_list() == data.user_ids.to_list()
    assert items.to_list() == data.item_ids.to_list()
  (tmp_path / "user_ids.parquet").write_bytes(b"no")
  with pytest.raises(DataError, match="not an id map"):
    ids.load_ids(tmp_path)


@pytest.mark.parametrize("values", [[5, 5, 2], [2**40, 0, -7], ["b", "a", "b"], [2**63, 1, 1]])
def test_encode_inverts(values):
  column = pl.Series(values, dtype=pl.UInt64 if values[0] == 2**63 else None)
  codes, names = ids.encode(column)
  assert codes.dtype == np.int32
  assert names.to_list() == sorted(set(values))
  assert [names[code] for code in codes.tolist()] == values


def test_bad_logs_and_options():
  log = make_log([(1, 1, 1)])
  for options in ({"min_sequence": 2}, {"valid_fraction": 0.6, "test_fraction": 0.4},
                  {"test_fraction": -0.1}, {"split": "random"}):  # fmt: skip
    with pytest.raises(ValueError, match="must"):
      prepare(log, **options)
  with pytest.raises(DataError, match="needs a item column"):
    prepare(Log(pl.DataFrame({"user": [1]})))
  with pytest.raises(DataError, match=r"event 1 .* has no user"):
    prepare(Log(pl.DataFrame({"user": [1, None], "item": [1, 2]})))
  with pytest.raises(DataError, match="no events"):
    prepare(Log(pl.DataFrame({"user": [], "item": []})))
  with pytest.raises(DataError, match="needs a timestamp column"):
    prepare(Log(pl.DataFrame({"user": [1], "item": [1]})), split="time")
  with pytest.raises(DataError, match="no event lies before timestamp 7"):
    prepare(make_log([(1, 1, 7), (2, 1, 7)]), split="time", test_fraction=0.5)


def test_summary_counts():
  # Ten items; the most popular one has 11 of 20 events.
  events = [(u, 0, t) for t, u in enumerate(range(11))] + [(0, i, 50 + i) for i in range(1, 10)]
  data = prepare(make_log(events))
  summary = describe(data)
  assert summary == data.summary
  assert (summary["users"], summary["items"], summary["interactions"]) == (11, 10, 20)
  assert summary["density"] == pytest.approx(20 / 110)
  assert summary["head_share"] == {"top 1%": 0.55, "top 10%": 0.55, "top 20%": 0.6}
  assert summary["length"]["max"] == 10
  assert summary["length"]["p50"] == 1
  assert summary["repairs"] == {"users with fewer than 4 events kept in training whole": 10}
  text = format_summary(summary)
  assert "users 11 | items 10 | interactions 20 (train 18, valid 1, test 1)" in text
  assert "kept in training whole: 10" in text


def test_sequences_rows():
  histories = Sequences(np.array([1, 2, 3], np.int32), np.array([0, 0, 3]))
  assert histories.lengths.tolist() == [0, 3]
  assert histories.row(1).tolist() == [1, 2, 3]


def test_a_large_log_prepares_like_its_parts():
  """Two disjoint logs side by side give the histories of each."""
  log = synthetic.generate(num_users=200, num_items=80, mean_length=10)
  other = log.events.with_columns(pl.col("user") + 200, pl.col("item") + 80)
  both = prepare(Log(pl.concat([other, log.events])))
  alone = prepare(log)
  for u in (0, 57, 199):
    np.testing.assert_array_equal(both.split.train.row(u), alone.split.train.row(u))
    np.testing.assert_array_equal(
      both.split.train.row(200 + u), alone.split.train.row(u) + alone.num_items
    )
