import numpy as np
import polars as pl
import pytest

from kdjax.data import mapped
from kdjax.data.errors import DataError

CONTENT = mapped.Mapped(
  {"x": np.arange(600, dtype=np.int32).reshape(100, 6), "none": np.zeros((0, 2), np.float32)},
  {"names": pl.DataFrame({"id": ["a", None, "c"], "n": [1, 2, 3]})},
  {"of": [1, "two", None]},
)


@pytest.fixture
def folder(tmp_path):
  mapped.save(tmp_path / "kept", CONTENT)
  return tmp_path / "kept"


def test_what_is_saved_is_mapped(folder):
  found = mapped.open_folder(folder)
  assert isinstance(found.arrays["x"], np.memmap)
  for name, values in CONTENT.arrays.items():
    np.testing.assert_array_equal(found.arrays[name], values)
    assert found.arrays[name].dtype == values.dtype
  assert found.tables["names"].equals(CONTENT.tables["names"])
  assert found.about == CONTENT.about
  assert [path.name for path in folder.parent.iterdir()] == ["kept"]


def test_a_write_that_fails_leaves_nothing(tmp_path):
  with pytest.raises(ValueError, match="Object arrays cannot be saved"):
    mapped.save(tmp_path / "kept", mapped.Mapped({"x": np.array([None])}, {}, {}))
  assert not list(tmp_path.iterdir())


def test_the_first_of_two_writers_stays(folder):
  mapped.save(folder, mapped.Mapped({"y": np.zeros(3)}, {}, {}))
  assert set(mapped.open_folder(folder).arrays) == {"x", "none"}
  assert [path.name for path in folder.parent.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", ["x.npy", "names.arrow", "index.json"])
@pytest.mark.parametrize("kept", [0, 0.5, None])
def test_a_damaged_file_is_named(folder, name, kept):
  path = folder / name
  whole = path.read_bytes()
  path.unlink() if kept is None else path.write_bytes(whole[: int(kept * len(whole))])
  with pytest.raises(DataError, match=rf"{name}: .*delete"):
    mapped.open_folder(folder)


def test_another_array_of_that_name_is_refused(folder):
  np.save(folder / "x.npy", np.zeros(3))
  with pytest.raises(DataError, match=r"x\.npy: not the array that index\.json tells of"):
    mapped.open_folder(folder)
