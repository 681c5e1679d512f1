"""Checkpoint folders as Hugging Face's libraries write them, read and written without those.

A folder holds `config.json` and weights in safetensors, whole or in shards that
`model.safetensors.index.json` lists; those of sentence-transformers say how tokens are pooled, too.
Nothing in it is executed. Tensors are memory-mapped and go straight to where a sharding wants them.
"""

from kdjax.models.hub.checkpoint import Checkpoint, heads_in, load, read_config, save
from kdjax.models.hub.folders import HubError, is_checkpoint, weights_in
from kdjax.models.hub.known import types_of

__all__ = [
  "Checkpoint",
  "HubError",
  "heads_in",
  "is_checkpoint",
  "load",
  "read_config",
  "save",
  "types_of",
  "weights_in",
]
