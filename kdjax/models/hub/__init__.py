"""Checkpoint folders as Hugging Face's libraries write them, read and written without those.

A folder holds `config.json` and weights in safetensors, whole or in shards that
`model.safetensors.index.json` lists; those of sentence-transformers say how tokens are pooled, too.
Nothing in it is executed. Tensors are memory-mapped and go straight to where a sharding wants them.
"""

from kdjax.models.hub.checkpoint import Checkpoint, heads_in, load, save
from kdjax.models.hub.folders import HubError

__all__ = ["Checkpoint", "HubError", "heads_in", "load", "save"]
