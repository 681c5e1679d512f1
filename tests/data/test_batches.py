import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.data import batches
from kdjax.types import MASK, PAD

histories = st.lists(st.lists(st.integers(0, 99), max_size=30), min_size=1, max_size=25)


def csr(lists):
  offsets = np.cumsum([0, *map(len, lists)])
  return np.concatenate([np.array(x, np.int32) for x in lists] or [[]]).astype(np.int32), offsets


def unpack(rows):
  """Every segment of every row as (items, labels), in any order."""
  found = []
  for items, segments, positions, labels in zip(
    rows["items"], rows["segments"], rows["positions"], rows["labels"], strict=True
  ):
    assert ((items == PAD) == (segments == 0)).all()
    for segment in range(1, segments.max(initial=0) + 1):
      here = np.flatnonzero(segments == segment)
      assert (np.diff(here) == 1).all()
      assert (positions[here] == np.arange(len(here))).all()
      found.append((items[here].tolist(), labels[here].tolist()))
  return found


@settings(max_examples=150, deadline=None)
@given(histories, st.integers(1, 12), st.integers(0, 3))
def test_every_window_is_packed_once(lists, length, seed):
  rows, ends = batches.pack_rows(*csr(lists), length=length, seed=seed)
  expected = []
  for history in lists:
    inputs, labels = history[:-1], history[1:]
    while inputs:
      expected.append((inputs[-length:], labels[-length:]))
      inputs, labels = inputs[:-length], labels[:-length]
  assert sorted(unpack(rows)) == sorted(expected)
  assert len(ends) == len(expected)


@settings(max_examples=100, deadline=None)
@given(histories, st.integers(1, 12))
def test_ends_point_at_each_history_s_last_event(lists, length):
  rows, ends = batches.pack_rows(*csr(lists), length=length, labels=False, all_windows=False)
  assert ends[:, 0].tolist() == [u for u, history in enumerate(lists) if history]
  for user, flat in ends:
    size = min(len(lists[user]), length)
    window = rows["items"].ravel()[flat - size + 1 : flat + 1]
    assert window.tolist() == lists[user][-size:]
    assert rows["positions"].ravel()[flat] == size - 1
  assert (rows["labels"] == PAD).all()


def test_rows_are_nearly_full():
  rng = np.random.default_rng(0)
  lists = [rng.integers(0, 50, n) for n in np.minimum(rng.geometric(1 / 9, 5000), 200)]
  rows, _ = batches.pack_rows(*csr(lists), length=50)
  assert (rows["items"] != PAD).mean() > 0.97


def test_history_batch_keeps_the_newest_events():
  batch = batches.history_batch([np.array([], np.int32), np.array([1, 2, 3, 4])], length=3)
  assert batch["items"].tolist() == [[PAD] * 3, [2, 3, 4]]
  assert batch["segments"].tolist() == [[0, 0, 0], [1, 1, 1]]
  assert batch["positions"].tolist() == [[0, 0, 0], [0, 1, 2]]


def test_append_mask_ends_every_history_with_mask():
  items, offsets = batches.append_mask(*csr([[5, 6], [], [7]]))
  assert items.tolist() == [5, 6, MASK, MASK, 7, MASK]
  assert offsets.tolist() == [0, 3, 4, 6]


def test_an_epoch_takes_every_row_at_most_once_and_epochs_differ():
  first, second = (batches.epoch_order(103, 10, seed=1, epoch=e) for e in (0, 1))
  assert first.shape == (10, 10)
  assert len(np.unique(first)) == 100
  assert not np.array_equal(first, second)
  assert np.array_equal(first, batches.epoch_order(103, 10, seed=1, epoch=0))
  assert batches.steps_per_epoch(103, 10) == 10
  assert batches.steps_per_epoch(3, 10) == 1


def test_rows_of_like_length_share_batches():
  lengths = np.random.default_rng(0).choice([8, 12, 16, 64], 803)
  first, second = (
    batches.epoch_order(803, 10, seed=1, epoch=epoch, lengths=lengths) for epoch in (0, 1)
  )
  assert first.shape == (80, 10)
  assert len(np.unique(first)) == 800
  of_batches = lengths[first]
  assert np.sum(of_batches.min(axis=1) < of_batches.max(axis=1)) <= 3  # One between two lengths.
  longest = of_batches.max(axis=1)
  assert np.count_nonzero(np.diff(longest)) < 20  # Batches of a length follow each other,
  assert np.any(np.diff(longest) < 0)  # but not from the shortest to the longest.
  shared = lambda order: {tuple(row) for row in order.tolist()}  # noqa: E731
  assert not shared(first) & shared(second)


def test_a_stream_starts_anywhere_and_restores_its_state():
  arrays = {"x": np.arange(40).reshape(20, 2)}
  whole = list(batches.stream(arrays, 6, seed=3, num_epochs=2))
  assert len(whole) == 6
  for step, batch in enumerate(whole):
    order = batches.epoch_order(20, 6, seed=3, epoch=step // 3)
    assert np.array_equal(batch["x"], arrays["x"][order[step % 3]])
  late = batches.stream(arrays, 6, seed=3, num_epochs=2, start=4)
  assert np.array_equal(next(late)["x"], whole[4]["x"])
  state = late.get_state()
  fresh = batches.stream(arrays, 6, seed=3, num_epochs=2)
  fresh.set_state(state)
  assert np.array_equal(next(fresh)["x"], whole[5]["x"])


def test_length_zero_is_refused():
  with pytest.raises(ValueError, match="at least 1"):
    batches.pack_rows(np.zeros(2, np.int32), np.array([0, 2]), length=0)
