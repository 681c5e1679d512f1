"""Rows in shards: whole or not at all, checked, shared among processes."""

import shutil

import numpy as np
import pytest

from kdjax.data import shards
from kdjax.data.errors import DataError

LAYOUT = shards.Layout(num_rows=23, row_bytes=7, rows_per_shard=5)
ROWS = np.random.default_rng(0).integers(0, 256, (23, 7)).astype(np.uint8)


def write(folder, numbers):
  for shard in numbers:
    shards.write(folder, LAYOUT, shard, ROWS[list(LAYOUT.rows_of(shard))])


@pytest.fixture
def folder(tmp_path):
  write(tmp_path, shards.start(tmp_path, LAYOUT, {"of": "tests"}))
  return tmp_path


def test_rows_come_back_in_any_order(folder):
  rows = shards.open_rows(folder)
  assert rows.about == {"of": "tests"}
  assert (len(rows), rows.shape) == (23, (23, 7))
  np.testing.assert_array_equal(np.asarray(rows), ROWS)
  np.testing.assert_array_equal(rows[np.array([22, 0, 7, 7, -1])], ROWS[[22, 0, 7, 7, 22]])
  np.testing.assert_array_equal(rows[3:9], ROWS[3:9])


def test_a_stopped_writer_goes_on(tmp_path):
  write(tmp_path, shards.start(tmp_path, LAYOUT, {})[:2])
  (tmp_path / "shard-00002.array_record.17.partial").write_bytes(b"half")
  assert shards.start(tmp_path, LAYOUT, {}) == [2, 3, 4]
  with pytest.raises(DataError, match=r"3 of 5 shards are missing .* shard-00002"):
    shards.open_rows(tmp_path)
  write(tmp_path, [4, 2, 3])
  np.testing.assert_array_equal(shards.open_rows(tmp_path), ROWS)


def test_what_was_cut_short_is_named_and_written_again(folder):
  path = folder / "shard-00001.array_record"
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(DataError, match=r"1 of 5 shards .* shard-00001\.array_record"):
    shards.open_rows(folder)
  assert shards.start(folder, LAYOUT, {"of": "tests"}) == [1]


def test_a_changed_byte_is_found(folder):
  path = folder / "shard-00001.array_record"
  data = bytearray(path.read_bytes())
  place = data.index(ROWS[6].tobytes())
  data[place + 3] ^= 1
  path.write_bytes(data)
  rows = shards.open_rows(folder)
  np.testing.assert_array_equal(rows[np.array([1, 2])], ROWS[1:3])
  # Whatever notices it, array_record's own sums or ours: nothing wrong is given.
  with pytest.raises(Exception, match=r"damaged|checksum|Corrupted|corrupt|hash"):
    rows[np.array([6])]


def test_other_rows_are_refused(folder):
  with pytest.raises(DataError, match=r"holds other rows .*about\.of 'tests', now 'others'"):
    shards.start(folder, LAYOUT, {"of": "others"})
  with pytest.raises(DataError, match=r"holds other rows .*layout\.num_rows 23, now 24"):
    shards.start(folder, LAYOUT._replace(num_rows=24), {"of": "tests"})
  with pytest.raises(ValueError, match=r"shard 4 takes uint8 \(3, 7\)"):
    shards.write(folder, LAYOUT, 4, ROWS[:5])


def test_a_full_disk_is_told_beforehand(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
  with pytest.raises(DataError, match="GB free on its disk; keep less"):
    shards.start(tmp_path, LAYOUT, {})
  assert not (tmp_path / shards.INDEX).exists()


def test_the_size_is_told_beforehand(tmp_path):
  layout = shards.Layout(num_rows=600, row_bytes=13_312, rows_per_shard=256)
  for shard in shards.start(tmp_path, layout, {}):
    count = len(layout.rows_of(shard))
    shards.write(tmp_path, layout, shard, np.zeros((count, 13_312), np.uint8))
  size = sum(path.stat().st_size for path in tmp_path.iterdir())
  assert 0.9 * layout.bytes_on_disk < size <= layout.bytes_on_disk


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    (shards.INDEX, "{", r"index\.json is damaged"),
    (shards.INDEX, "[]", r"format None, this version reads 1"),
    (shards.INDEX, '{"format": 2}', "format 2, this version reads 1"),
    (shards.INDEX, '{"format": 1}', "not an index of rows"),
    ("shard-00000.json", "{", r"shard-00000\.json is damaged"),
  ],
)
def test_garbage_is_named(folder, name, content, message):
  (folder / name).write_text(content)
  with pytest.raises(DataError, match=message):
    shards.open_rows(folder)


def test_an_empty_folder_is_named(tmp_path):
  with pytest.raises(DataError, match=r"no index\.json in it"):
    shards.open_rows(tmp_path)
