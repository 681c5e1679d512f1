"""How one kind of Hugging Face's models is called: its config and tensors, as data."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kdjax.models.hub.folders import CONFIG, Config, HubError
from kdjax.models.linen import Sizes, collapse
from kdjax.types import Path


class Part(NamedTuple):
  """One of several modules whose outputs stand side by side in one tensor, all of equal width."""

  name: str
  at: int
  of: int


class Architecture(NamedTuple):
  """How one `model_type` calls what a family of kdjax has.

  Attributes:
    family: of kdjax.
    prefix: of the names of the body where a head stands beside it, such as "bert.".
    fields: sizes by their key in `config.json`, but for those that `sizes` finds.
    defaults: what the config means where it is silent.
    fixed: sizes that follow from the type.
    sizes: further sizes, from the config; a `ValueError` says what is not known.
    config: the keys that `sizes` reads, from all sizes.
    body: our modules by their names, `{i}` for the number of a block.
    heads: for every head its modules and whether their names take the prefix.
    classes: the names under `architectures`, by head.
    tied: further names of tensors, which must be equal to those they repeat.
    skipped: patterns of what names of other heads and of buffers begin with.
    turned: whether kernels are stored `[out, in]`.
  """

  family: str
  prefix: str
  fields: dict[str, str]
  defaults: Config
  fixed: Sizes
  sizes: Callable[[Config], Sizes]
  config: Callable[[Sizes], Config]
  body: Mapping[str, str | Part]
  heads: dict[str, dict[str, str]]
  classes: dict[str, str]
  tied: dict[str, str]
  skipped: tuple[str, ...]
  turned: bool = True


class Place(NamedTuple):
  """Where a leaf stands in the file: a tensor, or part of its outputs."""

  name: str
  at: int
  of: int
  turned: bool

  def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
    """Of the whole tensor."""
    whole = (*leaf[:-1], leaf[-1] * self.of)
    return whole[::-1] if self.turned else whole


ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
  "tanh": "tanh",
}
# What else a config may ask for, and what of it is known.
_KNOWN = {
  "position_embedding_type": ("absolute",),
  "is_decoder": (False,),
  "add_cross_attention": (False,),
  "use_bidirectional_attention": (False, None),
  "scale_attn_weights": (True,),
  "scale_attn_by_inverse_layer_idx": (False,),
}


def head_of(config: Config, architecture: Architecture, folder: pathlib.Path) -> str:
  """The head that the config names; "pool" where it names none."""
  named = (config.get("architectures") or [architecture.classes["pool"]])[0]
  for head, name in architecture.classes.items():
    if name == named:
      return head
  raise HubError(
    f"{folder / CONFIG}: {named} has a head that is not known; head= one of "
    f"{', '.join(architecture.heads)} reads that, or the body alone"
  )


def sizes_of_config(
  config: Config, architecture: Architecture, head: str, folder: pathlib.Path
) -> Sizes:
  """The arguments of the family's `make_`, from the config."""
  for key, plain in _KNOWN.items():
    if config.get(key, plain[0]) not in plain:
      raise HubError(f"{folder / CONFIG}: {key}={config[key]!r} is not known, only {plain[0]!r}")
  config = architecture.defaults | config
  try:
    sizes: Sizes = {ours: config[theirs] for ours, theirs in architecture.fields.items()}
    sizes |= architecture.fixed | architecture.sizes(config) | {"head": head}
  except KeyError as error:
    raise HubError(f"{folder / CONFIG}: {error} is missing") from error
  except ValueError as error:
    raise HubError(f"{folder / CONFIG}: {error}") from error
  if sizes["activation"] not in ACTIVATIONS:
    raise HubError(
      f"{folder / CONFIG}: activation {sizes['activation']!r}: there are {', '.join(ACTIVATIONS)}"
    )
  return sizes | {"activation": ACTIVATIONS[sizes["activation"]]}


def config_of(config: Config, architecture: Architecture, sizes: Sizes) -> Config:
  """A config with what the sizes say in it, the rest as it was."""
  new = {theirs: plain(sizes[ours]) for ours, theirs in architecture.fields.items()}
  theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
  new[architecture.fields["activation"]] = theirs[sizes["activation"]]
  config = {**config, **new}
  try:
    said = architecture.sizes(architecture.defaults | config)
  except (KeyError, ValueError):
    return {**config, **architecture.config(sizes)}
  kept = all(sizes[name] == size for name, size in said.items())
  return config if kept else {**config, **architecture.config(sizes)}


def plain(size: Any) -> Any:
  """One number for one of every block, where they agree."""
  return collapse(size) if isinstance(size, (tuple, list)) else size


def place_of(path: Path, architecture: Architecture, head: str, prefix: str) -> Place:
  """Where a leaf stands in the file."""
  of_head = architecture.heads[head]
  at, of = 0, 1
  if path[0] in of_head:
    name = of_head[path[0]].format(prefix=prefix)
  else:
    block = re.fullmatch(r"block_(\d+)", path[0])
    key = "/".join(("block_{i}" if block else path[0], *path[1:-1]))
    if key not in architecture.body:
      raise HubError(f"{'/'.join(path)} has no place in a model of this type")
    found = architecture.body[key]
    if isinstance(found, Part):
      found, at, of = found
    name = prefix + found.format(i=block and block[1])
  if len(path) > 1:
    name += ".bias" if path[-1] == "bias" else ".weight"
  return Place(name, at, of, path[-1] == "kernel" and architecture.turned)
