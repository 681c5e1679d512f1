"""Checkpoint folders as Hugging Face's libraries write them, read and written without those.

A folder holds `config.json` and weights in safetensors, whole or in shards that
`model.safetensors.index.json` lists; those of sentence-transformers say how tokens are pooled, too.
Nothing in it is executed. Tensors are memory-mapped and go straight to where a sharding wants them.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models.architectures import (
  Architecture,
  config_of,
  find,
  head_of,
  name_of,
  plain,
  sizes_of_config,
)
from kdjax.models.bert import BERT
from kdjax.models.folders import (
  CONFIG,
  Config,
  HubError,
  open_tensors,
  read_json,
  read_pooling,
  write,
  write_pooling,
  write_tensors,
)
from kdjax.models.linen import Sizes, from_linen, sizes_of
from kdjax.tree import leaves_with_path
from kdjax.types import Params, Path

FAMILIES = {"bert": BERT}


class Checkpoint(NamedTuple):
  """A model and where it is known from.

  Attributes:
    model_type: as in `config.json`: "bert", "roberta", "distilbert", ...
    family: of kdjax: "bert", made by `kdjax.models.make_bert(**sizes)`.
    sizes: the arguments of that function.
    params: nested dicts of arrays.
    config: the whole `config.json`; what is not in `sizes` is written back as it was.
    left: tensors of the folder that belong to other heads, and were not read.
  """

  model_type: str
  family: str
  sizes: Sizes
  params: Params
  config: Config
  left: tuple[str, ...] = ()


def load(
  folder: str | os.PathLike[str],
  *,
  head: str | None = None,
  dtype: Any = None,
  sharding: Callable[[Path, tuple[int, ...]], jax.sharding.Sharding] | None = None,
) -> Checkpoint:
  """Reads a checkpoint folder.

  Args:
    folder: with `config.json` and safetensors.
    head: which head to read, see the family (for "bert" see `kdjax.models.bert.BERT`); None for
      that of the config, and "pool" where it names none. The tensors of other heads are left.
    dtype: what floats become; None to keep those of the file, bfloat16 too.
    sharding: `(path, shape) -> Sharding` of every array; each device then reads its own part. None
      for the default device.

  Returns:
    Checkpoint; `make_bert(**checkpoint.sizes).apply(checkpoint.params, batch)` runs it.

  Raises:
    HubError: if a file is damaged, the type or its head is not known, or tensors are missing, left
      over or of another shape: all of them are listed.
    FileNotFoundError: if there is no `config.json`, or no weights.
  """
  folder = pathlib.Path(folder)
  config = read_json(folder / CONFIG)
  architecture = find(config.get("model_type"), folder)
  if head is None:
    head = head_of(config, architecture, folder)
  elif head not in architecture.heads:
    raise HubError(f"{folder}: head={head!r}: there are {', '.join(architecture.heads)}")
  sizes = sizes_of_config(config, architecture, head, folder)
  if head == "pool":
    sizes |= read_pooling(folder)
  with open_tensors(folder) as views:
    prefix = architecture.prefix
    prefix = prefix if any(name.startswith(prefix) for name in views) else ""
    shapes = _shapes(architecture.family, sizes)
    names = {path: name_of(path, architecture, head, prefix) for path in shapes}
    tied = {name: names.get(tuple(to.split("/"))) for name, to in architecture.tied.items()}
    left = _check(views, names, shapes, tied, architecture, prefix, folder)
    params: dict[str, Any] = {}
    for path, name in names.items():
      at = params
      for key in path[:-1]:
        at = at.setdefault(key, {})
      place = sharding and sharding(path, shapes[path])
      at[path[-1]] = _read(views[name], shapes[path], path[-1] == "kernel", dtype, place)
  return Checkpoint(config["model_type"], architecture.family, sizes, params, config, left)


def save(
  folder: str | os.PathLike[str], checkpoint: Checkpoint, *, max_shard_bytes: int = 5 * 10**9
) -> None:
  """Writes a checkpoint folder that `load` and Hugging Face's libraries read.

  A student that was made here is saved by `Checkpoint("bert", "bert", sizes, params, {})`.
  Tokenizer files are not written. The config comes last: a folder that was cut off is not loaded.

  Args:
    folder: made where there is none.
    checkpoint: what to write; `sizes` override what `config` says.
    max_shard_bytes: weights larger than this are split.

  Raises:
    HubError: if the type is not known, if a leaf is quantised, or if the format cannot say a size,
      such as blocks of different widths.
  """
  folder = pathlib.Path(folder)
  architecture = find(checkpoint.model_type, folder)
  sizes = _own_sizes(architecture.family, checkpoint.sizes)
  head = sizes["head"]
  config = config_of(checkpoint.model_type, checkpoint.config, architecture, sizes)
  said = _own_sizes(architecture.family, sizes_of_config(config, architecture, head, folder))
  whole = {k: plain(v) for k, v in sizes.items() if k not in ("pooling", "normalize")}
  silent = [k for k, v in whole.items() if isinstance(v, tuple) or plain(said[k]) != v]
  if silent:
    listed = ", ".join(f"{name}={sizes[name]!r}" for name in silent)
    raise HubError(f"config.json of a {checkpoint.model_type} cannot say {listed}")
  prefix = "" if head == "pool" else architecture.prefix
  tensors = {}
  for path, leaf in leaves_with_path(checkpoint.params):
    if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise HubError(f"{'/'.join(path)} is no array of floats; dequantize_params first")
    values = np.asarray(leaf)
    tensors[name_of(path, architecture, head, prefix)] = (
      values.T if path[-1] == "kernel" else values
    )
  folder.mkdir(parents=True, exist_ok=True)
  (folder / CONFIG).unlink(missing_ok=True)
  write_tensors(folder, tensors, max_shard_bytes)
  if head == "pool":
    write_pooling(folder, sizes)
  write(folder / CONFIG, json.dumps(config, indent=2).encode())


def _own_sizes(family: str, sizes: Sizes) -> Sizes:
  """All sizes of the family, those that were not given too."""
  return sizes_of(FAMILIES[family](**sizes))


def _shapes(family: str, sizes: Sizes) -> dict[Path, tuple[int, ...]]:
  """The shape of every leaf by its path."""
  one = jnp.ones([1, 1], jnp.int32)
  batch = {"tokens": one, "segments": one, "positions": one}
  made = jax.eval_shape(from_linen(FAMILIES[family](**sizes)).init, jax.random.key(0), batch)
  return {path: leaf.shape for path, leaf in leaves_with_path(made)}


def _check(
  views: Mapping[str, Any],
  names: Mapping[Path, str],
  shapes: Mapping[Path, tuple[int, ...]],
  tied: Mapping[str, str | None],
  architecture: Architecture,
  prefix: str,
  folder: pathlib.Path,
) -> tuple[str, ...]:
  """Whether the folder holds what is wanted and nothing unknown: what belongs to other heads."""
  problems = []
  if missing := sorted(set(names.values()) - set(views)):
    problems.append(f"missing: {', '.join(missing)}")
  others = tuple(start.format(prefix=prefix) for start in architecture.skipped)
  rest = sorted(set(views) - set(names.values()) - {name for name, to in tied.items() if to})
  left = tuple(name for name in rest if name.startswith(others))
  if unknown := [name for name in rest if name not in left]:
    problems.append(f"left over: {', '.join(unknown)}")
  for path, name in names.items():
    turned = shapes[path][::-1] if path[-1] == "kernel" else shapes[path]
    if name in views and tuple(views[name].get_shape()) != turned:
      problems.append(f"{name} is {views[name].get_shape()}, but the config says {list(turned)}")
  for name, to in tied.items():
    if (
      to is not None
      and to in views
      and name in views
      and not np.array_equal(views[name][:], views[to][:])
    ):
      problems.append(f"{name} differs from {to}, to which it is tied here")
  if problems:
    raise HubError(f"{folder}: {'; '.join(problems)}")
  return left


def _read(
  view: Any,
  shape: tuple[int, ...],
  turned: bool,
  dtype: Any,
  sharding: jax.sharding.Sharding | None,
) -> jax.Array:
  """One leaf on its devices; kernels are stored `[out, in]`."""

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    index = index or (slice(None),) * len(shape)
    values = view[index[::-1]].T if turned else view[index]
    return values if dtype is None else values.astype(dtype)

  if sharding is None:
    return jnp.asarray(part(None))
  return jax.make_array_from_callback(shape, sharding, part)
