"""Logs through tensorflow-datasets: our builder, and its own MovieLens, without network."""

import pathlib

import numpy as np
import polars as pl
import pytest

from kdjax.data import sources, synthetic, tfds
from kdjax.data.errors import DataError
from kdjax.data.interactions import Log


@pytest.fixture(scope="module")
def log():
  return synthetic.generate(num_users=60, num_items=40, mean_length=8)


def test_numeric_log_survives_the_round_trip(log, tmp_path):
  out = tfds.write(log, tmp_path)
  back = sources.load(f"tfds:{tmp_path}")
  assert back.events.equals(log.events.cast({"user": pl.Int64, "item": pl.Int64}))
  assert back.items.equals(log.items)
  assert list(out.glob("*.array_record*"))


def test_text_ids_survive_the_round_trip(tmp_path):
  events = pl.DataFrame(
    {"user": ["ü", "b", "ü"], "item": ["x y", "x y", "z"], "rating": [1.0, 2, 3]}
  )
  back = sources.load(f"tfds:{tfds.write(Log(events), tmp_path)}")
  assert back.events.sort("user", maintain_order=True).to_dict(as_series=False) == (
    events.sort("user", maintain_order=True).to_dict(as_series=False)
  )


def test_histories_are_read_by_random_access(log, tmp_path):
  histories = tfds.open_histories(tfds.write(log, tmp_path))
  assert len(histories) == 60
  for user in (59, 0, 31):
    want = log.events.filter(pl.col("user") == user)
    record = histories[user]
    assert record["user"] == user
    np.testing.assert_array_equal(record["item"], want["item"])
    np.testing.assert_array_equal(record["timestamp"], want["timestamp"])


def test_a_log_is_written_once_and_another_is_refused(log, tmp_path):
  first = tfds.write(log, tmp_path)
  before = {p: p.stat().st_mtime_ns for p in first.iterdir()}
  assert tfds.write(log, tmp_path) == first
  assert {p: p.stat().st_mtime_ns for p in first.iterdir()} == before
  with pytest.raises(DataError, match="holds another log"):
    tfds.write(log._replace(events=log.events.reverse()), tmp_path)


def test_an_unprepared_set_says_how_to_prepare_it(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(DataError, match=r"array_record"):
    sources.load("tfds:movielens/1m-ratings")


@pytest.mark.parametrize("spec", ["tfds:no_such_set/x", "tfds:", "tfds:movielens/no-such-config"])
def test_an_unknown_set_is_one_clear_error(spec):
  with pytest.raises(DataError, match="not a data set"):
    sources.load(spec)


def test_damaged_folder_is_one_clear_error(tmp_path):
  (tmp_path / "dataset_info.json").write_text("{")
  with pytest.raises(DataError, match="prepare it again"):
    sources.load(f"tfds:{tmp_path}")
  with pytest.raises(DataError, match="no prepared log"):
    tfds.open_histories(tmp_path / "absent")


def test_movielens_of_tfds_itself(tmp_path, monkeypatch):
  """Prepares TFDS's MovieLens from a hand-made record instead of the download."""
  module = tfds._import()
  from tensorflow_datasets.structured import movielens

  rows = [(b"7", b"31", 4.0, 978300760, b"Titanic (1997)", [7, 14]),
          (b"7", b"32", 2.0, 978300761, b"Up (2009)", [2]),
          (b"8", b"31", 5.0, 978300762, b"Titanic (1997)", [7, 14])]  # fmt: skip

  class Small(movielens.Movielens, skip_registration=True):
    name = "movielens"
    pkg_dir_path = pathlib.Path(__file__).parent
    code_path = None

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      names = ("user_id", "movie_id", "user_rating", "timestamp", "movie_title", "movie_genres")
      rest = {"bucketized_user_age": 18.0, "user_gender": True, "user_occupation_label": 3,
              "user_occupation_text": "x", "user_zip_code": "1"}  # fmt: skip
      for key, row in enumerate(rows):
        yield key, dict(zip(names, row, strict=True)) | rest

  builder = Small(config="1m-ratings", data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare()
  assert module.__version__
  monkeypatch.setattr(tfds, "_import", lambda: _At(module, str(tmp_path)))
  log = sources.load("tfds:movielens/1m-ratings")
  assert log.events.sort("timestamp").rows() == [
    ("7", "31", 978300760, 4.0), ("7", "32", 978300761, 2.0), ("8", "31", 978300762, 5.0)
  ]  # fmt: skip
  items = log.items.sort("item")
  assert items["title"].to_list() == ["Titanic (1997)", "Up (2009)"]
  assert items["genres"].to_list() == ["Drama|Romance", "Animation"]


class _At:
  """tensorflow_datasets with another data folder."""

  def __init__(self, module, folder):
    self._module, self._folder = module, folder

  def __getattr__(self, name):
    return getattr(self._module, name)

  def builder(self, spec, **options):
    return self._module.builder(spec, data_dir=self._folder, **options)
