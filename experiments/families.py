"""Model families by their flags: sizes, functions, and what serves as integers."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp

from experiments import retrieval, texts
from experiments.config import ModelConfig
from experiments.tasks import LANGUAGE_FAMILIES, SEARCH_FAMILIES, TEXT_FAMILIES, Task
from kdjax import models, tree
from kdjax.composed import Composition
from kdjax.models.decoder import Cached
from kdjax.models.linen import Sizes
from kdjax.types import Model, Params

COMPOSED = ("sasrec", "gru4rec", "two_tower", "mf", "ncf")
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def model_sizes(config: ModelConfig, task: Task) -> Sizes:
  """The arguments of `make_<family>`: what the data decides, and what the flags ask for.

  Raises:
    ValueError: naming the flag that does not fit.
  """
  family, dim = config.model, config.dim
  mlp_dim = config.mlp_dim or 4 * dim
  if family in ("sasrec", "bert4rec") and dim % config.heads:
    raise ValueError(f"--heads={config.heads} does not divide --dim={dim}")
  heads = {name: getattr(config, name) for name in models.HEADS if getattr(config, name)}
  if heads and family not in ("sasrec", "gru4rec", "bert4rec"):
    raise ValueError(f"--{next(iter(heads))} does not fit --model={family}; it has no such heads")
  if config.embedding != "full" and family not in COMPOSED:
    raise ValueError(
      f"--embedding={config.embedding} does not fit --model={family}; use one of "
      + ", ".join(COMPOSED)
    )
  if config.cell != "gru" and "text_gru" not in (family, _encoder(config)):
    raise ValueError(f"--cell={config.cell} does not fit --model={family}; use text_gru")
  sizes: Sizes = {**task.sizes, "dropout": config.dropout, **heads}
  if family in (*TEXT_FAMILIES, *LANGUAGE_FAMILIES):
    return texts.model_sizes(config, sizes)
  if config.fold_item_embeddings and not config.item_embeddings:
    raise ValueError("--fold_item_embeddings needs --item_embeddings, whose adapters it folds")
  if family in SEARCH_FAMILIES:
    return retrieval.model_sizes(config, sizes)
  if config.item_embeddings:
    if family != "sasrec":
      raise ValueError(f"--item_embeddings does not fit --model={family}; use sasrec")
    widths = [texts.read_embeddings(path)[1].shape[1] for path in config.item_embeddings]
    sizes["feature_dims"] = tuple(widths)
    sizes["id_embeddings"] = config.id_embeddings
  elif not config.id_embeddings:
    raise ValueError("--id_embeddings=false needs --item_embeddings: items would be all alike")
  if config.embedding != "full":
    sizes["composition"] = _composition(config, sizes)
  if config.checkpoint:
    raise ValueError(f"--checkpoint does not fit --model={family}; use bert or decoder")
  if family in ("sasrec", "bert4rec"):
    return sizes | {
      "dim": dim,
      "num_layers": config.layers,
      "num_heads": config.heads,
      "mlp_dim": mlp_dim,
    }
  if family == "gru4rec":
    return _without(sizes, "max_length") | {"dim": dim, "num_layers": config.layers}
  if family == "two_tower":
    return _without(sizes, "max_length") | {"dim": dim, "hidden": (mlp_dim,) * config.layers}
  if family == "speech_gru":
    return sizes | {"dim": dim, "hidden_dim": config.mlp_dim or dim, "num_layers": config.layers}
  if family == "resnet":
    dims = tuple(dim << stage for stage in range(3))
    return sizes | {"dims": dims, "blocks": config.layers, "inner_dim": config.mlp_dim}
  if family == "mf":
    return _without(sizes, "dropout") | {"dim": dim}
  if family == "ncf":
    return sizes | {"dim": dim, "hidden": tuple(max(mlp_dim >> i, 1) for i in range(config.layers))}
  return sizes | {"dim": dim, "hidden": (mlp_dim,) * config.layers}


def _encoder(config: ModelConfig) -> str:
  return config.encoder if config.model == "bi_encoder" else ""


def _composition(config: ModelConfig, sizes: Sizes) -> Composition:
  """How --embedding makes tables of smaller ones.

  Raises:
    ValueError: naming the flag, if nothing is saved.
  """
  method: Any = config.embedding
  hashes, product = config.embedding_hashes, config.embedding_product
  made = Composition(method, config.embedding_rows, hashes, product)
  for name in ("num_items", "num_users"):
    try:
      made.num_parts(sizes.get(name) or sizes["num_items"])
    except ValueError as error:
      raise ValueError(f"--embedding_rows, --embedding={config.embedding}: {error}") from error
  return made


def served(model: ModelConfig, sizes: Sizes, params: Params) -> tuple[Sizes, Params]:
  """What a finished training keeps, by the flags."""
  if not model.fold_item_embeddings:
    return sizes, params
  own, heads = models.split_heads(sizes)
  params, own = models.fold_item_features(params, own)
  return {**own, **heads}, jax.device_get(params)


def _without(sizes: Sizes, *names: str) -> Sizes:
  return {name: size for name, size in sizes.items() if name not in names}


def make_model(family: str, sizes: Sizes, dtype: str = "float32") -> Model:
  """The model of a family and sizes, computing in `dtype`."""
  return _make_model(family, json.dumps(sizes, sort_keys=True), dtype)


@functools.lru_cache(maxsize=16)
def _make_model(family: str, sizes: str, dtype: str) -> Model:
  # The same model is the same function, so that what was compiled for it is found again.
  own, heads = models.split_heads(arguments(json.loads(sizes)))
  model = getattr(models, f"make_{family}")(**own, dtype=_DTYPES[dtype])
  return models.with_heads(model, **heads) if heads else model


def axes_of(family: str, sizes: Sizes) -> Params:
  """The names of the axes of a family's params."""
  own, heads = models.split_heads(sizes)
  axes = getattr(models, f"{family}_axes")(own)
  return {**axes, "heads": models.head_axes(heads)} if heads else axes


def sizes_after(family: str, params: Params, sizes: Sizes) -> Sizes:
  """The sizes of params that were shrunk."""
  own, heads = models.split_heads(sizes)
  return {**getattr(models, f"{family}_sizes")(params, own), **heads}


def make_cached(sizes: Sizes, dtype: str = "float32") -> Cached:
  """The decoder of these sizes, reading on where it stopped."""
  return models.make_cached(**arguments(sizes), dtype=_DTYPES[dtype])


def arguments(sizes: Sizes) -> Sizes:
  """Sizes that JSON made lists of."""
  return {name: tuple(size) if isinstance(size, list) else size for name, size in sizes.items()}


def serves_integers(path: tree.Path, leaf: Any) -> bool:
  """Which leaves are quantised: all matrices but positions.

  Those are few, and added to every embedding: int8 there saves little and costs most.
  """
  return tree.is_matrix(path, leaf) and "position_embedding" not in path
