"""Reads and writes a checkpoint folder."""

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models.hub.architecture import (
  Architecture,
  Place,
  head_of,
  place_of,
  sizes_of_config,
)
from kdjax.models.hub.folders import (
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
from kdjax.models.hub.known import FAMILIES, config_for, find, whole
from kdjax.models.linen import Sizes, from_linen
from kdjax.tree import leaves_with_path
from kdjax.types import Params, Path


class Checkpoint(NamedTuple):
  """A model and where it is known from.

  Attributes:
    model_type: as in `config.json`: "bert", "roberta", "llama", ...
    family: of kdjax: "bert" or "decoder", made by `kdjax.models.make_bert(**sizes)` or
      `make_decoder(**sizes)`.
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
  partial: bool = False,
  on_host: bool = False,
) -> Checkpoint:
  """Reads a checkpoint folder.

  Args:
    folder: with `config.json` and safetensors.
    head: which head to read, see `kdjax.models.bert.BERT` and `kdjax.models.decoder.Decoder`; None
      for that of the config, and "pool" where it names none. The tensors of other heads are left.
    dtype: what floats become; None to keep those of the file, bfloat16 too.
    sharding: `(path, shape) -> Sharding` of every array; each device then reads its own part. None
      for the default device.
    partial: whether modules of the head may be missing; the params are then without them.
    on_host: whether arrays are NumPy's, on no device; `sharding` is not asked then.

  Returns:
    Checkpoint; `make_bert(**checkpoint.sizes).apply(checkpoint.params, batch)` runs one of the
    family "bert".

  Raises:
    HubError: if a file is damaged, the type or its head is not known, or tensors are missing, left
      over or of another shape: all of them are listed.
    FileNotFoundError: if there is no `config.json`, or no weights.
  """
  folder = pathlib.Path(folder)
  found = read_config(folder, head=head)
  architecture, sizes = find(found.model_type, folder), found.sizes
  head = sizes["head"]
  with open_tensors(folder) as views:
    prefix = _prefix(architecture, views)
    absent = set(architecture.heads[head]) - _modules(architecture, head, views) if partial else ()
    shapes = {p: x for p, x in _shapes(found.family, sizes).items() if p[0] not in absent}
    places = {path: place_of(path, architecture, head, prefix) for path in shapes}
    tied = architecture.tied if sizes.get("tied", True) else {}
    left = _check(views, places, shapes, architecture._replace(tied=tied), prefix, folder)
    params: dict[str, Any] = {}
    for path, place in places.items():
      at = params
      for key in path[:-1]:
        at = at.setdefault(key, {})
      onto = sharding and sharding(path, shapes[path])
      read = _part(views[place.name], place, shapes[path], dtype)
      at[path[-1]] = read(None) if on_host else _placed(read, shapes[path], onto)
  return found._replace(params=params, left=left)


def read_config(folder: str | os.PathLike[str], *, head: str | None = None) -> Checkpoint:
  """What a checkpoint folder's `config.json` says; weights are not read, and `params` are empty.

  Args:
    folder: with `config.json`.
    head: as `load`.

  Returns:
    Checkpoint; its `sizes` are those of `load`.

  Raises:
    HubError: if a file is damaged, or the type or its head is not known. FileNotFoundError: if
      there is no `config.json`.
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
  return Checkpoint(config["model_type"], architecture.family, sizes, {}, config)


def heads_in(folder: str | os.PathLike[str]) -> tuple[str, ...]:
  """The heads that `load` can read from a checkpoint folder: those whose tensors it holds.

  Args:
    folder: with `config.json` and safetensors.

  Returns:
    Some of "pool", "tokens" and "labels"; "pool" needs no tensors.

  Raises:
    HubError: if a file is damaged, or the type is not known. FileNotFoundError: as `load`.
  """
  folder = pathlib.Path(folder)
  architecture = find(read_json(folder / CONFIG).get("model_type"), folder)
  with open_tensors(folder) as views:
    names = tuple(views)
  return tuple(
    head
    for head, modules in architecture.heads.items()
    if set(modules) == _modules(architecture, head, names)
  )


def _prefix(architecture: Architecture, names: Iterable[str]) -> str:
  """What the names of the body begin with, in the file that has these."""
  prefix = architecture.prefix
  return prefix if any(name.startswith(prefix) for name in names) else ""


def _modules(architecture: Architecture, head: str, names: Iterable[str]) -> set[str]:
  """Which of a head's modules have tensors among these."""
  prefix = _prefix(architecture, names)

  def there(module: str) -> bool:
    wanted = module.format(prefix=prefix)
    return any(name == wanted or name.startswith(f"{wanted}.") for name in names)

  return {ours for ours, module in architecture.heads[head].items() if there(module)}


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
  sizes = whole(architecture.family, checkpoint.sizes)
  head = sizes["head"]
  config = config_for(checkpoint.model_type, sizes, checkpoint.config, folder)
  config["architectures"] = [architecture.classes[head]]
  prefix = "" if head == "pool" else architecture.prefix
  parts: dict[str, dict[int, np.ndarray]] = {}
  turned = set()
  for path, leaf in leaves_with_path(checkpoint.params):
    if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise HubError(f"{'/'.join(path)} is no array of floats; dequantize_params first")
    place = place_of(path, architecture, head, prefix)
    parts.setdefault(place.name, {})[place.at] = np.asarray(leaf)
    turned |= {place.name} if place.turned else set()
  tensors = {}
  for name, found in parts.items():
    values = np.concatenate([found[i] for i in sorted(found)], axis=-1)
    tensors[name] = values.T if name in turned else values
  folder.mkdir(parents=True, exist_ok=True)
  (folder / CONFIG).unlink(missing_ok=True)
  write_tensors(folder, tensors, max_shard_bytes)
  if head == "pool":
    write_pooling(folder, sizes)
  write(folder / CONFIG, json.dumps(config, indent=2).encode())


def _shapes(family: str, sizes: Sizes) -> dict[Path, tuple[int, ...]]:
  """The shape of every leaf by its path."""
  one = jnp.ones([1, 1], jnp.int32)
  batch = {"tokens": one, "segments": one, "positions": one}
  made = jax.eval_shape(from_linen(FAMILIES[family](**sizes)).init, jax.random.key(0), batch)
  return {path: leaf.shape for path, leaf in leaves_with_path(made)}


def _check(
  views: Mapping[str, Any],
  places: Mapping[Path, Place],
  shapes: Mapping[Path, tuple[int, ...]],
  architecture: Architecture,
  prefix: str,
  folder: pathlib.Path,
) -> tuple[str, ...]:
  """Whether the folder holds what is wanted and nothing unknown: what belongs to other heads."""
  problems = []
  wanted = {place.name for place in places.values()}
  if missing := sorted(wanted - set(views)):
    problems.append(f"missing: {', '.join(missing)}")
  paths = {name: tuple(path.split("/")) for name, path in architecture.tied.items()}
  tied = {
    name: places[path].name
    for name, path in paths.items()
    if path in places and name in views and name not in wanted
  }
  others = "|".join(start.format(prefix=re.escape(prefix)) for start in architecture.skipped)
  rest = sorted(set(views) - wanted - set(tied))
  left = tuple(name for name in rest if re.match(others, name))
  if unknown := [name for name in rest if name not in left]:
    problems.append(f"left over: {', '.join(unknown)}")
  for path, place in places.items():
    whole = place.shape(shapes[path])
    if place.name in views and tuple(views[place.name].get_shape()) != whole:
      found = views[place.name].get_shape()
      problems.append(f"{place.name} is {found}, but the config says {list(whole)}")
  for name, to in tied.items():
    if to in views and not np.array_equal(views[name][:], views[to][:]):
      problems.append(f"{name} differs from {to}, to which it is tied here")
  if problems:
    raise HubError(f"{folder}: {'; '.join(dict.fromkeys(problems))}")
  return left


def _part(
  view: Any, place: Place, shape: tuple[int, ...], dtype: Any
) -> Callable[[tuple[slice, ...] | None], np.ndarray]:
  """`(index) -> values` of one leaf, of which only that is read; None for all of it."""

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    *inputs, outputs = index or (slice(None),) * len(shape)
    start, stop, _ = outputs.indices(shape[-1])
    offset = place.at * shape[-1]
    index = (*inputs, slice(start + offset, stop + offset))
    values = view[index[::-1]].T if place.turned else view[index]
    return values if dtype is None else values.astype(dtype)

  return part


def _placed(
  read: Callable[[tuple[slice, ...] | None], np.ndarray],
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding | None,
) -> jax.Array:
  """One leaf on its devices."""
  if sharding is None:
    return jnp.asarray(read(None))
  return jax.make_array_from_callback(shape, sharding, read)
