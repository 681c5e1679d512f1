"""What the tests of checkpoint folders share: golden folders, and how to spoil a copy."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from kdjax.data.tokens import encode, load_tokenizer
from kdjax.models import generate, hub, make_bert, make_cached, make_decoder
from kdjax.types import FactoredLogits

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def cases(root):
  return sorted(path.name for path in root.iterdir() if path.is_dir())


def change(folder, **config):
  """Sets keys of the config; those that become None are taken out."""
  said = json.loads((folder / "config.json").read_text())
  said |= config
  (folder / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}))


def tensors(folder):
  files = sorted(folder.glob("*.safetensors"))
  return {k: v for file in files for k, v in safetensors.numpy.load_file(file).items()}


def rewrite(folder, change_of):
  found = tensors(folder)
  change_of(found)
  safetensors.numpy.save_file(found, folder / "model.safetensors")


def same(a, b):
  return jax.tree.all(jax.tree.map(jnp.array_equal, a, b))


def batch_of(values):
  """Rows as kdjax reads them, of what transformers was given."""
  mask = values["mask"]
  batch = {
    "tokens": jnp.asarray(np.where(mask == 1, values["tokens"], -1)),
    "segments": jnp.asarray(mask),
    "positions": jnp.asarray(np.arange(mask.shape[1]) * mask),
  }
  return batch | ({"types": jnp.asarray(values["types"])} if "types" in values else {})


def run(checkpoint, values):
  """What the model of a checkpoint folder makes of the rows."""
  make = {"bert": make_bert, "decoder": make_decoder}[checkpoint.family]
  batch = batch_of(values)
  if checkpoint.model_type != "bert":  # Others were given no types.
    batch.pop("types", None)
  return jax.jit(make(**checkpoint.sizes).apply)(checkpoint.params, batch)


def check_encoder(folder, values, name):
  """Hidden states and logits of a folder are those of transformers."""
  outputs, real = run(hub.load(folder), values), values["mask"] == 1
  for i, feature in enumerate(("embedding", "block_0", "block_1")):
    expected = values[f"{name}_hidden_{i}"][real]
    np.testing.assert_allclose(outputs.features[feature][real], expected, atol=1e-4)
  logits = outputs.logits
  if f"{name}_logits" not in values:
    hidden = values[f"{name}_hidden_2"] * real[..., None]
    mean = hidden.sum(1) / real.sum(1, keepdims=True)
    expected = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
  elif isinstance(logits, FactoredLogits):
    logits, expected = logits.dense()[real], values[f"{name}_logits"][real]
  else:
    expected = values[f"{name}_logits"]
  np.testing.assert_allclose(logits, expected, atol=1e-4)


def check_decoder(folder, values, name):
  """Hidden states and logits of a folder are those of transformers."""
  checkpoint, real = hub.load(folder), values["mask"] == 1
  if name == "gpt2_body":  # No embedding of a text, but the last layer.
    checkpoint = checkpoint._replace(sizes=checkpoint.sizes | {"head": "tokens"})
  outputs = run(checkpoint, values)
  for i, feature in enumerate(("embedding", "block_0", "query")):
    expected = values[f"{name}_hidden_{i}"][real]
    np.testing.assert_allclose(outputs.features[feature][real], expected, atol=1e-4)
  if name != "gpt2_body":
    assert isinstance(outputs.logits, FactoredLogits) == (name != "gemma2")
    logits = outputs.logits if name == "gemma2" else outputs.logits.dense()
    np.testing.assert_allclose(logits[real], values[f"{name}_logits"][real], atol=1e-4)


def check_greedy(folder, values, name):
  """The likeliest texts of a folder are those of transformers, token by token."""
  checkpoint, batch = hub.load(folder), batch_of(values)
  cached = make_cached(**checkpoint.sizes)
  write = jax.jit(
    lambda params: generate(
      cached, params, batch, jax.random.key(0), max_new=8, temperature=0.0, stop=[2]
    )
  )
  for row, written in enumerate(write(checkpoint.params)):
    expected = values[f"{name}_written_{row}"]
    np.testing.assert_array_equal(written[: len(expected)], expected)
    assert (written[len(expected) :] == -1).all()


def check_sentences(folder, values):
  """Tokens and embeddings that all-MiniLM-L6-v2's folder gives sentences are those of others."""
  checkpoint, real = hub.load(folder), values["mask"] == 1
  rows = encode(
    load_tokenizer(folder), [str(text) for text in values["sentences"]], max_length=real.shape[1]
  )
  np.testing.assert_array_equal(rows["tokens"], np.where(real, values["tokens"], -1))
  np.testing.assert_array_equal(rows["segments"], values["mask"])
  batch = {name: jnp.asarray(rows[name]) for name in ("tokens", "segments", "positions")}
  found = jax.jit(make_bert(**checkpoint.sizes).apply)(checkpoint.params, batch).logits
  np.testing.assert_allclose(found, values["embeddings"], atol=1e-5)


def check_round_trip(folder, new, shard):
  """What is saved is what was loaded: sizes, params, tensors and config."""
  checkpoint = hub.load(folder)
  hub.save(new, checkpoint, max_shard_bytes=shard)
  again = hub.load(new)
  alike = {"params": None, "left": (), "sizes": {}}
  assert again._replace(**alike) == checkpoint._replace(**alike)
  assert checkpoint.sizes.items() <= again.sizes.items()
  assert same(again.params, checkpoint.params)
  theirs, ours = tensors(folder), tensors(new)
  assert set(theirs) - set(ours) == set(checkpoint.left)
  for key, value in ours.items():
    np.testing.assert_array_equal(value, theirs[key])
  assert json.loads((new / "config.json").read_text()) == checkpoint.config
