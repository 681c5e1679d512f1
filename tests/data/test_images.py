"""idx files: read exactly, refused by name when they are not what they say; the parts."""

import gzip

import numpy as np
import pytest

from kdjax.data.errors import DataError
from kdjax.data.images import load_images, make_images, read_idx


def idx(array):
  header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
  return header + array.tobytes()


def write(folder, name, count, *, zipped=False):
  rng = np.random.default_rng(count)
  images = rng.integers(0, 256, (count, 5, 4), np.uint8)
  labels = rng.integers(0, 3, count, np.uint8)
  for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
    data = gzip.compress(idx(array)) if zipped else idx(array)
    (folder / f"{name}-{kind}-ubyte{'.gz' if zipped else ''}").write_bytes(data)
  return images, labels


def test_one_pair_is_cut_and_two_are_the_parts(tmp_path):
  images, labels = write(tmp_path, "t10k", 50, zipped=True)
  alone = load_images(tmp_path, valid_fraction=0.2)
  assert [len(alone.parts[p].labels) for p in ("train", "valid", "test")] == [32, 8, 10]
  found = np.concatenate([alone.parts[p].images for p in ("train", "valid", "test")])
  np.testing.assert_array_equal(found[..., 0], images / np.float32(255))
  np.testing.assert_array_equal(alone.parts["test"].labels, labels[40:])
  assert "not an official split" in alone.note
  assert alone.num_classes == 3
  write(tmp_path, "train", 60)
  both = load_images(tmp_path)
  assert [len(both.parts[p].labels) for p in ("train", "valid", "test")] == [54, 6, 50]


def test_what_is_wrong_is_named(tmp_path):
  with pytest.raises(DataError, match="images-idx3-ubyte file in it"):
    load_images(tmp_path)
  write(tmp_path, "a", 10)
  path = tmp_path / "a-images-idx3-ubyte"
  whole = path.read_bytes()
  path.write_bytes(whole[:-3])
  with pytest.raises(DataError, match=r"a-images-idx3-ubyte: 197 bytes for \(10, 5, 4\)"):
    load_images(tmp_path)
  path.write_bytes(b"PNG" + whole)
  with pytest.raises(DataError, match="no idx file"):
    read_idx(path)
  path.write_bytes(gzip.compress(whole)[:-9])
  with pytest.raises(DataError, match="damaged gzip"):
    read_idx(path)
  path.write_bytes(whole)
  write(tmp_path, "b", 10)
  with pytest.raises(DataError, match="neither train and t10k"):
    load_images(tmp_path)
  (tmp_path / "b-labels-idx1-ubyte").unlink()
  with pytest.raises(DataError, match="b-labels-idx1-ubyte is missing"):
    load_images(tmp_path)
  (tmp_path / "b-labels-idx1-ubyte").write_bytes(idx(np.zeros(9, np.uint8)))
  with pytest.raises(DataError, match="do not fit"):
    load_images(tmp_path)
  with pytest.raises(DataError, match="too few"):
    make_images(1)


def test_real_digits(shared_data):
  data = load_images(shared_data / "mnist-10k")
  assert [len(data.parts[p].labels) for p in ("train", "valid", "test")] == [7200, 800, 2000]
  assert data.parts["test"].images.shape == (2000, 28, 28, 1)
  assert data.parts["train"].labels[:5].tolist() == [7, 2, 1, 0, 4]
  assert 0.1 < data.parts["train"].images.mean() < 0.2
