"""Users trained per second: histories packed into shared rows against one padded row each.

python -m benchmarks.packing

The same SASRec, loss and windows of histories: once as `kdjax.data.pack_rows` lays them out, once
a row each. First the sums of the losses of the same users and their gradients are compared, without
dropout; then steps on as many users are timed in turns.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from benchmarks.catalog_loss import made_with
from experiments import families, problems
from experiments.config import DataConfig
from kdjax import losses
from kdjax.cost import time_calls
from kdjax.types import PAD

FLAGS = flags.FLAGS
flags.DEFINE_string("data", "../shared/data/amazon-video-games", "A log of `user item` lines.")
flags.DEFINE_string("out", "benchmarks/results/packing.json", "Where the figures go.")
flags.DEFINE_integer("rows", 16, "Packed rows of a step.")
flags.DEFINE_integer("length", 50, "Window of a history.")
flags.DEFINE_integer("dim", 64, "Width.")
flags.DEFINE_integer("calls", 24, "Timed steps of each.")


def pad_rows(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The windows of packed rows, a row each."""
  segments = packed["segments"]
  rows = [(row, segment) for row, own in enumerate(segments) for segment in range(1, own.max() + 1)]
  fill = {"items": PAD, "labels": PAD, "segments": 0, "positions": 0}
  padded = {name: np.full((len(rows), segments.shape[1]), fill[name], np.int32) for name in packed}
  for place, (row, segment) in enumerate(rows):
    mine = segments[row] == segment
    for name, values in packed.items():
      kept = values[row][mine]
      padded[name][place, : len(kept)] = 1 if name == "segments" else kept
  return padded


def main(argv: list[str]) -> None:
  """Writes the figures."""
  del argv
  config = DataConfig(dataset=FLAGS.data, max_length=FLAGS.length)
  task = problems.make_task(config, "sasrec")
  sizes = {**task.sizes, "dim": FLAGS.dim, "num_layers": 2, "mlp_dim": FLAGS.dim, "dropout": 0.2}
  model = families.make_model("sasrec", sizes)
  names = ("items", "labels", "segments", "positions")
  every = {name: np.asarray(task.arrays[name]) for name in names}
  chosen = np.random.default_rng(0).choice(len(every["items"]), FLAGS.rows, replace=False)
  packed = {name: values[chosen] for name, values in every.items()}
  batches = {"packed": packed, "padded": pad_rows(packed)}
  batches = {way: jax.tree.map(jnp.asarray, batch) for way, batch in batches.items()}
  users = len(batches["padded"]["items"])
  params = model.init(jax.random.key(0), batches["packed"])

  def loss(params, batch, key):
    logits = model.apply(params, batch, key=key).logits
    where = batch["labels"] >= 0
    return losses.catalog_cross_entropy_loss(
      logits, batch["labels"], where=where, reduce_fn=jnp.sum
    )

  exact = jax.jit(jax.value_and_grad(lambda p, b: loss(p, b, None)))
  found = {way: exact(params, batch) for way, batch in batches.items()}
  totals = {way: float(value) for way, (value, _) in found.items()}
  gap = jax.tree.map(jnp.subtract, found["packed"][1], found["padded"][1])
  gradient_gap = float(optax.global_norm(gap) / optax.global_norm(found["padded"][1]))
  loss_gap = abs(totals["packed"] / totals["padded"] - 1)
  if max(loss_gap, gradient_gap) > 1e-5:
    raise ValueError(f"packed and padded differ: loss {loss_gap:.1e}, gradient {gradient_gap:.1e}")

  tx = optax.adam(1e-3)

  def train(params, moments, batch):
    grads = jax.grad(loss)(params, batch, jax.random.key(1))
    updates, moments = tx.update(grads, moments, params)
    return optax.apply_updates(params, updates), moments

  step = jax.jit(train)
  moments = tx.init(params)
  calls = {way: lambda b=batch: step(params, moments, b) for way, batch in batches.items()}
  times = {way: float(np.median(t)) for way, t in time_calls(calls, num_calls=FLAGS.calls).items()}
  result = {
    "what": "users (windows of histories) trained per second, median of steps in turns",
    "command": "python -m benchmarks.packing",
    "data": pathlib.Path(FLAGS.data).name,
    "model": {"dim": FLAGS.dim, "layers": 2, "window": FLAGS.length, "items": sizes["num_items"]},
    "users of a step": users,
    "rows": {way: len(batch["items"]) for way, batch in batches.items()},
    "mean length": float((every["items"] != PAD).sum() / every["segments"].max(axis=1).sum()),
    "filled": float((every["items"] != PAD).mean()),
    "relative difference": {"loss": loss_gap, "gradient": gradient_gap},
    "users per second": {way: round(users / t, 1) for way, t in times.items()},
    "times padded": round(times["padded"] / times["packed"], 2),
    "made with": made_with(),
  }  # fmt: skip
  pathlib.Path(FLAGS.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  print(json.dumps(result, indent=1))


if __name__ == "__main__":
  app.run(main)
