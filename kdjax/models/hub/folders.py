"""Files of a checkpoint folder: JSON, safetensors in shards, and how sentences are pooled."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from kdjax.models.linen import Sizes

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
Config = dict[str, Any]
# How sentence-transformers calls the poolings.
_MODES = {
  "pooling_mode_mean_tokens": "mean",
  "pooling_mode_cls_token": "first",
  "pooling_mode_max_tokens": "max",
  "pooling_mode_lasttoken": "last",
}


class HubError(ValueError):
  """A folder that cannot be read: damaged, or of a model that is not known here."""


def read_json(path: pathlib.Path) -> Any:
  """What a JSON file says; a `HubError` names one that is none."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise HubError(f"{path}: no JSON: {error}") from error


def is_checkpoint(folder: str | os.PathLike[str]) -> bool:
  """Whether a folder holds a `config.json` that names a type of model, of whatever kind.

  Raises:
    HubError: if that file is damaged.
  """
  path = pathlib.Path(folder) / CONFIG
  said = read_json(path) if path.is_file() else None
  return isinstance(said, dict) and "model_type" in said


def weights_in(folder: str | os.PathLike[str]) -> tuple[pathlib.Path, ...]:
  """The files of a folder's weights: the shards that its index lists, or the only one.

  Args:
    folder: a checkpoint folder; also one with a `model.safetensors` of any other kind.

  Returns:
    Their paths, sorted; whether they exist is not asked.

  Raises:
    HubError: if the index is damaged.
  """
  folder = pathlib.Path(folder)
  if not (folder / INDEX).exists():
    return (folder / WEIGHTS,)
  listed = read_json(folder / INDEX)["weight_map"].values()
  return tuple(folder / name for name in sorted(set(listed)))


@contextlib.contextmanager
def open_tensors(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Every tensor of the folder by its name, mapped and not yet read."""
  views: dict[str, Any] = {}
  with contextlib.ExitStack() as stack:
    for path in weights_in(folder):
      if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; weights must be safetensors")
      try:
        file = stack.enter_context(safetensors.safe_open(path, "numpy"))
      except safetensors.SafetensorError as error:
        raise HubError(f"{path}: truncated, or no safetensors file: {error}") from error
      # As older files call the scales and biases of norms.
      for name in file.keys():  # noqa: SIM118 - no mapping.
        own = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        views[own] = file.get_slice(name)
    yield views


def write_tensors(
  folder: pathlib.Path, tensors: dict[str, np.ndarray], max_shard_bytes: int
) -> None:
  """Writes one file, or several and their index."""
  shards: list[dict[str, np.ndarray]] = [{}]
  size = 0
  for name, values in tensors.items():
    if shards[-1] and size + values.nbytes > max_shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = np.ascontiguousarray(values)
    size += values.nbytes
  (folder / INDEX).unlink(missing_ok=True)
  files = [WEIGHTS]
  if len(shards) > 1:
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
  for file, shard in zip(files, shards, strict=True):
    write(folder / file, safetensors.numpy.save(shard, {"format": "pt"}))
  if len(shards) > 1:
    found = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    total = sum(values.nbytes for values in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": found}
    write(folder / INDEX, json.dumps(index, indent=2).encode())


def read_pooling(folder: pathlib.Path) -> Sizes:
  """What sentence-transformers says of the folder; nothing where it was not its own."""
  if not (folder / "modules.json").exists():
    return {}
  modules = read_json(folder / "modules.json")
  kinds = {module["type"].rsplit(".", 1)[-1]: folder / module["path"] for module in modules}
  if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
    raise HubError(f"{folder / 'modules.json'}: {', '.join(sorted(unknown))} is not known")
  sizes: Sizes = {"normalize": "Normalize" in kinds}
  if "Pooling" in kinds:
    path = kinds["Pooling"] / CONFIG
    said = read_json(path)
    modes = [
      key for key, value in said.items() if key.startswith("pooling_mode_") and value is True
    ]
    if len(modes) != 1 or modes[0] not in _MODES:
      raise HubError(f"{path}: {modes or 'no pooling'}; known, one at a time: {', '.join(_MODES)}")
    sizes["pooling"] = _MODES[modes[0]]
  return sizes


def write_pooling(folder: pathlib.Path, sizes: Sizes) -> None:
  """Writes how sentences are pooled, as sentence-transformers reads it."""
  kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
  kinds += [("Normalize", "2_Normalize")] if sizes["normalize"] else []
  modules = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (kind, path) in enumerate(kinds)
  ]
  said = {"word_embedding_dimension": sizes["dim"]}
  said |= {key: mode == sizes["pooling"] for key, mode in _MODES.items()}
  (folder / "1_Pooling").mkdir(exist_ok=True)
  write(folder / "1_Pooling" / CONFIG, json.dumps(said, indent=2).encode())
  write(folder / "modules.json", json.dumps(modules, indent=2).encode())


def write(path: pathlib.Path, data: bytes) -> None:
  """Whole or not at all."""
  part = path.with_name(path.name + ".part")
  part.write_bytes(data)
  part.replace(path)
