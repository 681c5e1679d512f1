"""Compressed checkpoints: safetensors files that are as small as the model really is.

A file holds nested dicts of arrays and `QTensor`s. Leaves with many zeros are stored as a bitmap
and the values that are left, where that is smaller; int4 two to a byte. Reading one never runs
code, and a checksum over everything is verified.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from kdjax.quant.qtensor import QTensor
from kdjax.types import Params

FORMAT = "kdjax-store/2"
_PREFIX = "kdjax."  # Header keys of ours; the caller's metadata must not start with it.
_CODES = {
  "BOOL": np.bool_,
  "U8": np.uint8,
  "U16": np.uint16,
  "U32": np.uint32,
  "U64": np.uint64,
  "I8": np.int8,
  "I16": np.int16,
  "I32": np.int32,
  "I64": np.int64,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "F32": np.float32,
  "F64": np.float64,
}
_DTYPES = {code: np.dtype(dtype) for code, dtype in _CODES.items()}
_INT4 = np.dtype(ml_dtypes.int4)  # Has no code of its own: two of them are a byte.
_PARTS = ("values", "scale", "zero", "input_factor", "input_scale")  # Of a QTensor.
_Tensors = dict[str, np.ndarray]


class StoreError(ValueError):
  """A checkpoint file that is truncated, foreign or tampered with."""


def save_params(
  path: str | os.PathLike[str],
  params: Params,
  *,
  metadata: Mapping[str, str] | None = None,
  masks: Params | None = None,
) -> int:
  """Writes params to one safetensors file, atomically.

  A leaf of n numbers of b bytes, k of them not zero, takes `min(n b, ceil(n / 8) + k b)` bytes; an
  int4 is half a byte.
  "Zero" means all bits zero, so that -0.0 survives.

  Args:
    path: the file; its folder must exist. It is replaced as a whole or left as it was.
    params: nested dicts with string keys; leaves are arrays or `QTensor`s.
    metadata: strings by name, kept in the header.
    masks: bool, shaped like params (for a `QTensor` leaf: like its values). Kept with the file for
      `load_masks`: the bitmap is then the mask itself, and costs nothing more.

  Returns:
    Bytes on disk.

  Raises:
    ValueError: if `params` is no nested dict of supported arrays, a key is no string, holds "/" or
      is empty, metadata are no strings, or a weight that a mask removes is not 0.

  Example:
    >>> import jax.numpy as jnp, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> size = save_params(path, {"dense": {"kernel": jnp.eye(64)}}, metadata={"step": "7"})
    >>> size == path.stat().st_size, size < 64 * 64 * 4 // 3
    (True, True)
    >>> params, metadata = load_params(path)
    >>> float(params["dense"]["kernel"].sum()), metadata
    (64.0, {'step': '7'})

  Reference:
    The safetensors format, https://github.com/huggingface/safetensors. The file is a valid one;
    what its tensors mean is in the header's metadata under `kdjax.layout`.
  """
  data = _encode(params, dict(metadata or {}), masks)
  path = pathlib.Path(path)
  descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(descriptor, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    # mkstemp files are private; a checkpoint has the rights of any new file.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise
  return len(data)


def load_params(
  path: str | os.PathLike[str], *, on_host: bool = False
) -> tuple[Params, dict[str, str]]:
  """Reads what `save_params` wrote, bit for bit.

  Args:
    path: the file.
    on_host: whether arrays are NumPy's, on no device: what fits on no single one goes from there to
      a mesh (`kdjax.train.put`).

  Returns:
    (params, metadata): nested dicts of `jax.Array` and `QTensor` leaves, and the caller's strings.
    64-bit leaves come back as NumPy arrays where JAX has 64-bit types switched off.

  Raises:
    StoreError: if the file is truncated, foreign or tampered with; the message names it.
    FileNotFoundError: if there is none.
  """
  tensors, layout, metadata = _read(path)
  with _blaming(path):
    arrays = _decode(tensors, layout)
    return _nest(layout, arrays if on_host else jax.tree.map(_on_device, arrays), _leaf), metadata


def load_masks(path: str | os.PathLike[str]) -> Params | None:
  """Reads the masks that `save_params` was given; None if there were none.

  Args:
    path: the file.

  Returns:
    bool arrays, nested like the params, all True where a leaf is exempt.

  Raises:
    StoreError: as `load_params`.
  """
  tensors, layout, _ = _read(path)
  with _blaming(path):
    if layout["masked"] is None:
      return None
    masks = {}
    for name, shape in layout["shapes"].items():
      present = np.ones(math.prod(shape), bool)
      if name in layout["masked"]:
        present = _bits(tensors[f"{name}.bitmap"], math.prod(shape))
      masks[name] = present.reshape(shape)
    return _nest(layout, masks, lambda values, **rest: jnp.asarray(values))


def predict_bytes(
  params: Params, *, metadata: Mapping[str, str] | None = None, masks: Params | None = None
) -> int:
  """Bytes that `save_params` with the same arguments writes, without writing.

  Example:
    >>> import jax.numpy as jnp
    >>> predict_bytes({"w": jnp.ones([100, 100])}) // 1000
    40
  """
  return len(_encode(params, dict(metadata or {}), masks))


def _encode(params: Params, metadata: dict[str, str], masks: Params | None) -> bytes:
  """The whole file."""
  for key, value in metadata.items():
    if not isinstance(key, str) or not isinstance(value, str) or key.startswith(_PREFIX):
      raise ValueError(f"metadata must be strings, not named {_PREFIX}*: {key!r}: {value!r}")
  leaves, empty = _flatten(params)
  kept = None if masks is None else _flatten_masks(masks, leaves)
  layout: dict[str, Any] = {"leaves": [], "shapes": {}, "sparse": [], "int4": [], "empty": empty}
  layout["masked"] = None if kept is None else []
  tensors: _Tensors = {}

  def put(name: str, array: np.ndarray) -> None:
    if name in tensors:
      raise ValueError(f"two tensors would be named {name!r}")
    tensors[name] = _pack(array) if array.dtype == _INT4 else array

  for path, leaf in leaves.items():
    name = "/".join(path)
    present_parts = [p for p in _PARTS if getattr(leaf, p, None) is not None]
    kinds = present_parts if isinstance(leaf, QTensor) else []
    if kinds and leaf.shadow is not None:
      raise ValueError(f"{name} is made for training; store quantize_params of the float params")
    layout["leaves"].append([list(path), kinds])
    parts = {f"{name}.{kind}": getattr(leaf, kind) for kind in kinds} or {name: leaf}
    for index, (part, value) in enumerate(parts.items()):
      array = _to_numpy(part, value)
      layout["shapes"][part] = list(array.shape)
      if array.dtype == _INT4:
        layout["int4"].append(part)
      mask = None if kept is None or index else kept[path]
      present = _nonzero(array)
      if mask is not None and not mask.all():
        if np.any(present & ~mask):
          raise ValueError(f"{name}: a weight that its mask removes is not 0; apply_masks first")
        present = mask
        layout["masked"].append(part)
      elif -(-array.size // 8) + _size(int(present.sum()), array) >= _size(array.size, array):
        put(part, array)
        continue
      layout["sparse"].append(part)
      put(f"{part}.bitmap", np.packbits(present.ravel()))
      put(f"{part}.nonzero", array[present])
  header = {**metadata, "kdjax.format": FORMAT, "kdjax.layout": json.dumps(layout)}
  header["kdjax.digest"] = _digest(tensors, header)
  ready = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}
  return safetensors.numpy.save(ready, header)


def _read(path: str | os.PathLike[str]) -> tuple[_Tensors, dict[str, Any], dict[str, str]]:
  """Tensors as stored, their layout, the caller's metadata: all of it verified."""
  data = pathlib.Path(path).read_bytes()
  try:
    found = safetensors.deserialize(data)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
  except (safetensors.SafetensorError, ValueError, RecursionError) as error:
    raise StoreError(f"{path}: truncated, or no safetensors file: {error}") from error
  if header.get("kdjax.format") != FORMAT:
    raise StoreError(
      f"{path}: a safetensors file, but not one of {FORMAT}: {header.get('kdjax.format')!r}"
    )
  with _blaming(path):
    tensors = {
      name: np.frombuffer(view["data"], _DTYPES[view["dtype"]]).reshape(view["shape"])
      for name, view in found
    }
    if header.pop("kdjax.digest", None) != _digest(tensors, header):
      raise StoreError(f"{path}: the checksum does not match: damaged or tampered with")
    layout = json.loads(header.pop("kdjax.layout"))
    del header["kdjax.format"]
  return tensors, layout, header


@contextlib.contextmanager
def _blaming(path: str | os.PathLike[str]) -> Iterator[None]:
  """Whatever is wrong with the content of a file is a `StoreError` that names it."""
  try:
    yield
  except StoreError:
    raise
  except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
    raise StoreError(f"{path}: inconsistent content: {type(error).__name__}: {error}") from error


def _digest(tensors: _Tensors, header: dict[str, str]) -> str:
  """SHA-256 over header strings, names, dtypes, shapes and bytes."""
  names = sorted(tensors)
  described = [[name, tensors[name].dtype.name, list(tensors[name].shape)] for name in names]
  digest = hashlib.sha256(json.dumps([sorted(header.items()), described]).encode())
  for name in names:
    digest.update(tensors[name].tobytes())
  return digest.hexdigest()


def _decode(tensors: _Tensors, layout: dict[str, Any]) -> _Tensors:
  """The tensors of the leaves, in full."""
  arrays = {}
  for name, shape in layout["shapes"].items():
    is_int4 = name in layout["int4"]
    if name not in layout["sparse"]:
      stored = tensors[name]
      arrays[name] = (_unpack(stored, math.prod(shape)) if is_int4 else stored).reshape(shape)
      continue
    present = _bits(tensors[f"{name}.bitmap"], math.prod(shape))
    values = tensors[f"{name}.nonzero"]
    values = _unpack(values, int(present.sum())) if is_int4 else values
    if int(present.sum()) != values.size:
      raise ValueError(f"{name}: {values.size} values for {int(present.sum())} places")
    flat = np.zeros(present.size, values.dtype)
    flat[present] = values
    arrays[name] = flat.reshape(shape)
  return arrays


def _nest(layout: dict[str, Any], arrays: _Tensors, leaf: Callable[..., Any]) -> Params:
  """Nested dicts from paths; `leaf` gets the tensor of a leaf, or those of a `QTensor` by name."""
  root: dict[str, Any] = {}
  for path in layout["empty"]:
    _at(root, path)
  for path, kinds in layout["leaves"]:
    name = "/".join(path)
    parts = {kind: f"{name}.{kind}" for kind in kinds} or {"values": name}
    _at(root, path[:-1])[path[-1]] = leaf(**{kind: arrays[part] for kind, part in parts.items()})
  return root


def _at(root: dict[str, Any], path: list[str]) -> dict[str, Any]:
  for key in path:
    root = root.setdefault(key, {})
  return root


def _leaf(**arrays: Any) -> Any:
  return QTensor(**arrays) if len(arrays) > 1 else arrays["values"]


def _on_device(array: np.ndarray) -> Any:
  return jnp.asarray(array) if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype else array


def _size(count: int, array: np.ndarray) -> int:
  """Bytes that so many of its numbers take."""
  return -(-count // 2) if array.dtype == _INT4 else count * array.itemsize


def _pack(values: np.ndarray) -> np.ndarray:
  """int4 `[...]` to uint8 `[ceil(n / 2)]`, the first of two in the low bits."""
  flat = values.reshape(-1).astype(np.int8).view(np.uint8) & 15
  flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
  return flat[::2] | (flat[1::2] << 4)


def _unpack(packed: np.ndarray, size: int) -> np.ndarray:
  """The other way round: int4 `[size]`."""
  if packed.dtype != np.uint8 or packed.size != -(-size // 2):
    raise ValueError(f"{packed.size} bytes for {size} int4")
  pairs = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:size].astype(np.int8)
  return ((pairs ^ 8) - 8).astype(_INT4)


def _bits(packed: np.ndarray, size: int) -> np.ndarray:
  if packed.size != -(-size // 8):
    raise ValueError(f"a bitmap of {packed.size} bytes for {size} numbers")
  return np.unpackbits(packed, count=size).astype(bool)


def _nonzero(array: np.ndarray) -> np.ndarray:
  """Where any bit is set: -0.0 and NaN count."""
  octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  return np.asarray(octets.reshape(array.size, array.itemsize).any(axis=1)).reshape(array.shape)


def _to_numpy(name: str, leaf: Any) -> np.ndarray:
  if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
    raise ValueError(f"{name}: cannot store a {type(leaf).__name__}; leaves must be arrays")
  if leaf.dtype != _INT4 and leaf.dtype not in _DTYPES.values():
    raise ValueError(f"{name}: cannot store {leaf.dtype}; one of {sorted(map(str, _CODES))}")
  return np.asarray(leaf)


def _flatten(tree: Params, path: tuple[str, ...] = ()) -> tuple[dict[tuple, Any], list[list[str]]]:
  """Leaves by path, and the paths of empty dicts."""
  if not isinstance(tree, Mapping):
    if not path:
      raise ValueError(f"params must be nested dicts, got {type(tree).__name__}")
    return {path: tree}, []
  leaves: dict[tuple, Any] = {}
  empty = [] if tree else [list(path)]
  for key, child in tree.items():
    if not isinstance(key, str) or not key or "/" in key:
      raise ValueError(f"a key must be a string without '/', got {key!r} below {'/'.join(path)!r}")
    below, none = _flatten(child, (*path, key))
    leaves |= below
    empty += none
  return leaves, empty


def _flatten_masks(masks: Params, leaves: dict[tuple, Any]) -> dict[tuple, np.ndarray]:
  flat, _ = _flatten(masks)
  kept = {path: np.asarray(mask) for path, mask in flat.items()}
  shapes = {path: leaf.shape for path, leaf in leaves.items()}
  if {path: mask.shape for path, mask in kept.items()} != shapes:
    raise ValueError("masks must have the structure and the shapes of params")
  if any(mask.dtype != bool for mask in kept.values()):
    raise ValueError("masks must be bool")
  return kept
