"""Labelled images from idx files, the format of MNIST and its kin; and made-up ones."""

import gzip
import math
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

from kdjax.data.errors import DataError


class Images(NamedTuple):
  """Labelled images of one size.

  Attributes:
    images: float32 `[N, H, W, C]` in [0, 1].
    labels: int32 `[N]`, from 0.
  """

  images: np.ndarray
  labels: np.ndarray

  def take(self, which: slice) -> "Images":
    """Some of them."""
    return Images(self.images[which], self.labels[which])


class ImageDataset(NamedTuple):
  """Images in three parts, and how they were made.

  Attributes:
    parts: by name, `train`, `valid` and `test`.
    num_classes: labels lie below.
    note: of the split, in words.
  """

  parts: dict[str, Images]
  num_classes: int
  note: str


def read_idx(path: str | pathlib.Path) -> np.ndarray:
  """An idx file of bytes, gzipped or not: uint8, of any rank.

  Raises:
    DataError: naming the file, if it is none, or shorter or longer than it says.
  """
  path = pathlib.Path(path)
  data = path.read_bytes()
  if data[:2] == b"\x1f\x8b":
    try:
      data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
      raise DataError(f"{path}: damaged gzip file: {error}") from error
  if len(data) < 4 or data[:3] != b"\x00\x00\x08":
    raise DataError(f"{path}: no idx file of bytes")
  start = 4 + 4 * data[3]
  shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
  if len(data) != start + math.prod(shape):
    raise DataError(
      f"{path}: {len(data) - start} bytes for {shape}, which needs {math.prod(shape)}; download it "
      "again"
    )
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def load_images(folder: str | pathlib.Path, *, valid_fraction: float = 0.1) -> ImageDataset:
  """Reads a folder of idx files.

  With files `train-*` and `t10k-*` (or `test-*`) those are the parts; with one pair of files alone
  its first four fifths are for training, the rest for testing. Validation is the end of training.

  Args:
    folder: holds `*images-idx3-ubyte` and `*labels-idx1-ubyte`, gzipped or not.
    valid_fraction: share of the training images that validate.

  Raises:
    DataError: naming what is missing or damaged.
  """
  folder = pathlib.Path(folder)
  pairs = {}
  for path in sorted(folder.glob("*images-idx3-ubyte*")):
    labels = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if not labels.exists():
      raise DataError(f"{path} has no labels beside it: {labels.name} is missing")
    pairs[path.name.split("images")[0].strip("-_.")] = _pair(path, labels)
  if not pairs:
    raise DataError(f"{folder}: no *images-idx3-ubyte file in it")
  test = next((name for name in ("t10k", "test") if name in pairs), None)
  if "train" in pairs and test is not None:
    train, held, note = pairs["train"], pairs[test], f"test is {test}"
  elif len(pairs) == 1:
    (name, whole), *_ = pairs.items()
    cut = len(whole.labels) * 4 // 5
    train, held = whole.take(slice(cut)), whole.take(slice(cut, None))
    note = f"first {cut:,} of {name} train, the rest test: not an official split"
  else:
    raise DataError(f"{folder}: files {sorted(pairs)} are neither train and t10k nor one alone")
  return _dataset(train, held, valid_fraction, note)


def make_images(
  count: int = 600, *, num_classes: int = 4, side: int = 12, seed: int = 0
) -> ImageDataset:
  """Made-up images: a pattern a class, moved and drowned in noise.

  Example:
    >>> data = make_images(50)
    >>> data.parts["train"].images.shape, data.num_classes
    ((36, 12, 12, 1), 4)
  """
  rng = np.random.default_rng(seed)
  patterns = rng.random((num_classes, side // 2, side // 2)) > 0.5
  labels = rng.integers(0, num_classes, count)
  images = 0.6 * rng.random((count, side, side))
  for image, label in zip(images, labels, strict=True):
    y, x = rng.integers(0, side - side // 2 + 1, 2)
    image[y : y + side // 2, x : x + side // 2] += 0.4 * patterns[label]
  whole = Images(images[..., None].astype(np.float32), labels.astype(np.int32))
  cut = count * 4 // 5
  return _dataset(whole.take(slice(cut)), whole.take(slice(cut, None)), 0.1, "made up")


def _pair(path: pathlib.Path, labels_path: pathlib.Path) -> Images:
  images, labels = read_idx(path), read_idx(labels_path)
  if images.ndim != 3 or labels.shape != images.shape[:1]:
    raise DataError(f"{path}: images {images.shape} do not fit labels {labels.shape}")
  return Images((images[..., None] / np.float32(255)), labels.astype(np.int32))


def _dataset(train: Images, test: Images, valid_fraction: float, note: str) -> ImageDataset:
  cut = len(train.labels) - max(1, round(valid_fraction * len(train.labels)))
  if cut < 1 or not len(test.labels):
    raise DataError(f"too few images: {len(train.labels)} to train, {len(test.labels)} to test")
  parts = {"train": train.take(slice(cut)), "valid": train.take(slice(cut, None)), "test": test}
  classes = 1 + max(int(part.labels.max()) for part in parts.values())
  return ImageDataset(parts, classes, note)
