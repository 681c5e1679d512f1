"""The image task: which class an image belongs to (resnet)."""

import functools

import numpy as np

from experiments import classes
from experiments.config import DataConfig
from experiments.tasks import Task
from kdjax.data.images import ImageDataset, load_images, make_images


@functools.lru_cache(maxsize=2)
def load(config: DataConfig) -> ImageDataset:
  """The images that --dataset names: a folder of idx files, or `synthetic`.

  Raises:
    DataError: naming the file and the mend.
  """
  if config.dataset == "synthetic":
    return make_images(config.synthetic_users, seed=config.data_seed)
  return load_images(config.dataset, valid_fraction=config.valid_fraction)


def describe(dataset: ImageDataset) -> str:
  """One line: how many images of which size in which part."""
  counts = ", ".join(f"{name} {len(part.labels):,}" for name, part in dataset.parts.items())
  size = "x".join(map(str, dataset.parts["train"].images.shape[1:]))
  return f"images {size} | {dataset.num_classes} classes | {counts} | {dataset.note}"


def make_task(dataset: ImageDataset, config: DataConfig, family: str) -> Task:
  """The image task."""
  del config
  test = dataset.parts["test"].images
  return classes.make_task(
    "image",
    {name: {"image": part.images} for name, part in dataset.parts.items()},
    {name: part.labels for name, part in dataset.parts.items()},
    family,
    {"num_classes": dataset.num_classes},
    count="num_classes",
    request=lambda count: {"image": np.resize(test, (count, *test.shape[1:]))},
  )
