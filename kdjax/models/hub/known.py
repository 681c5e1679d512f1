"""The types of models that are known, and the config that says the sizes of one."""

import pathlib
from typing import Any

from kdjax.models.bert import BERT
from kdjax.models.decoder import Decoder
from kdjax.models.hub.architecture import Architecture, config_of, plain, sizes_of_config
from kdjax.models.hub.decoders import DECODERS
from kdjax.models.hub.encoders import ENCODERS
from kdjax.models.hub.folders import Config, HubError
from kdjax.models.linen import Sizes, sizes_of
from kdjax.models.transformer import width_of_head

FAMILIES: dict[str, Any] = {"bert": BERT, "decoder": Decoder}
ARCHITECTURES = ENCODERS | DECODERS


def find(model_type: Any, folder: pathlib.Path) -> Architecture:
  """The architecture of that type."""
  if model_type not in ARCHITECTURES:
    raise HubError(f"{folder}: model_type {model_type!r}: there are {', '.join(ARCHITECTURES)}")
  return ARCHITECTURES[model_type]


def types_of(family: str, sizes: Sizes) -> tuple[str, ...]:
  """The types whose `config.json` can say the sizes of a model.

  Args:
    family: "bert" or "decoder"; others have none.
    sizes: the arguments of its `make_`.

  Returns:
    Some of the `model_type`s that `save` takes; perhaps none.

  Example:
    >>> types_of("decoder", dict(vocab_size=9, head_norms=True))
    ('qwen3',)
  """

  def says(name: str) -> bool:
    try:
      config_for(name, sizes, {}, pathlib.Path())
    except HubError:
      return False
    return True

  return tuple(n for n, found in ARCHITECTURES.items() if found.family == family and says(n))


def config_for(model_type: str, sizes: Sizes, config: Config, folder: pathlib.Path) -> Config:
  """A config that says the sizes: the one given where it does, else with them in it.

  Raises:
    HubError: naming the sizes that it cannot say.
  """
  architecture = find(model_type, folder)
  sizes = whole(architecture.family, sizes)

  def unsaid(config: Config) -> list[str]:
    found = sizes_of_config(config, architecture, sizes["head"], folder)
    there, pooled = whole(architecture.family, found), ("pooling", "normalize")
    uneven = [k for k in architecture.fields if isinstance(sizes[k], tuple)]
    return uneven or [k for k, v in sizes.items() if k not in pooled and there[k] != v]

  def complete(config: Config) -> bool:
    try:
      return not unsaid(config)
    except HubError:
      return False

  config = {**config, "model_type": model_type}
  if not complete(config):
    config = config_of(config, architecture, sizes)
    if missing := unsaid(config):
      listed = ", ".join(f"{name}={sizes[name]!r}" for name in missing)
      raise HubError(f"config.json of a {model_type} cannot say {listed}")
  return config


def whole(family: str, sizes: Sizes) -> Sizes:
  """All sizes of the family, those that were not given too, and what None stands for."""
  module = FAMILIES[family](**sizes)
  whole = sizes_of(module) | {"head_dim": width_of_head(module)}
  means = {
    "norm_width": module.dim,
    "mlp_dim": 4 * module.dim,
    "num_kv_heads": module.num_heads,
    "query_scale": width_of_head(module) ** -0.5,
    "embedding_scale": module.dim**0.5,
    "head_width": module.dim,
  }
  return {k: plain(means.get(k) if v is None else v) for k, v in whole.items()}
