"""Positions trained per second: our SASRec step against PyTorch, same model, batch and data.

python -m benchmarks.train_throughput --data=../shared/data/amazon-video-games

The PyTorch side (the extra `bench`) is written as most published code is: one padded row a user,
`nn.TransformerEncoder`-style blocks with a causal mask (`benchmarks/torch_sasrec.py`), logits for
the whole catalogue at every position, cross-entropy that ignores padding. `gathered` is the same
with logits for the real positions only, which careful code does. The step is timed in turns, so
that a noisy machine is fair to all; a position counts when it has a label.
"""

import functools
import json
import os
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from experiments import families, problems
from experiments.config import DataConfig, FitConfig
from kdjax.data import batches
from kdjax.train import objective, parallel, state, step

FLAGS = flags.FLAGS
flags.DEFINE_string("data", "../shared/data/amazon-video-games", "A log of `user item` lines.")
flags.DEFINE_string("out", "benchmarks/results/train_throughput.json", "Where the figures go.")
flags.DEFINE_integer("users", 128, "Users of a batch, on average.")
flags.DEFINE_integer("length", 50, "Window of a history.")
flags.DEFINE_integer("dim", 64, "Width.")
flags.DEFINE_integer("rounds", 7, "Timed steps of each side.")

NUM_LAYERS, NUM_HEADS, DROPOUT, RATE = 2, 1, 0.2, 1e-3


def ours(config: DataConfig, dtype: str):
  """A function that takes a step and returns how many positions it trained."""
  task = problems.make_task(config, "sasrec")
  sizes = {
    **task.sizes, "dim": FLAGS.dim, "num_layers": NUM_LAYERS, "num_heads": NUM_HEADS,
    "mlp_dim": FLAGS.dim, "dropout": DROPOUT,
  }  # fmt: skip
  model = families.make_model("sasrec", sizes, dtype)
  goal = objective.make_objective(model.apply, [task.label_term(FitConfig(), 1.0)])
  tx = optax.adam(RATE)
  example = {name: jnp.asarray(rows[:1]) for name, rows in task.arrays.items()}
  params = goal.init(jax.random.key(0), model.init(jax.random.key(0), example), None, example)
  runner = parallel.jit_runner(step.make_train_step(goal, tx))
  rows = task.rows_per_step(FLAGS.users)
  order = batches.epoch_order(len(task.arrays["items"]), rows, seed=0, epoch=0)
  arrays = jax.tree.map(jnp.asarray, dict(task.arrays))
  labelled = (task.arrays["labels"] >= 0).sum(axis=1)
  carry = {"state": state.init_state(params, tx), "nth": 0}

  def take() -> int:
    index = order[carry["nth"] % len(order)][None]
    carry["nth"] += 1
    new, metrics = runner(carry["state"], None, arrays, jnp.asarray(index), 1, jax.random.key(0))
    carry["state"] = jax.block_until_ready(new)
    assert np.isfinite(metrics["loss"]).all()
    return int(labelled[index].sum())

  return take, {"rows of a step": rows, "parameters": sum(x.size for x in jax.tree.leaves(params))}


def torchs(config: DataConfig, *, gathered: bool):
  """The same for PyTorch."""
  import torch

  from benchmarks import torch_sasrec

  dataset = problems.load_data(config)
  train, num_items = dataset.split.train, dataset.num_items
  model = torch_sasrec.make(
    num_items, length=FLAGS.length, dim=FLAGS.dim, layers=NUM_LAYERS, heads=NUM_HEADS,
    mlp_dim=FLAGS.dim, dropout=DROPOUT,
  )  # fmt: skip
  optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
  users = np.flatnonzero(train.lengths > 1)
  rng = np.random.default_rng(0)

  def take() -> int:
    chosen = rng.choice(users, FLAGS.users, replace=False)
    items, labels = torch_sasrec.rows(train, chosen, length=FLAGS.length, padding=num_items)
    real = labels != torch_sasrec.IGNORED
    positions = int(real.sum())
    hidden = model(items)
    if gathered:
      hidden, labels = hidden[real], labels[real]
    loss = torch.nn.functional.cross_entropy(
      model.logits(hidden).reshape(-1, num_items), labels.reshape(-1)
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    return positions

  return take, {"parameters": sum(p.numel() for p in model.parameters())}


def main(argv):
  """Times all sides in turns and writes the ratios."""
  del argv
  config = DataConfig(dataset=FLAGS.data, max_length=FLAGS.length)
  makers = {
    "kdjax float32": functools.partial(ours, config, "float32"),
    "kdjax bfloat16": functools.partial(ours, config, "bfloat16"),
    "torch padded": functools.partial(torchs, config, gathered=False),
    "torch gathered": functools.partial(torchs, config, gathered=True),
  }
  sides, notes = {}, {}
  for name, make in makers.items():
    sides[name], notes[name] = make()
    for _ in range(2):  # Compiles, and warms the allocator up.
      sides[name]()
  rates: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(FLAGS.rounds):
    for name, take in sides.items():
      begin = time.perf_counter()
      positions = take()
      rates[name].append(positions / (time.perf_counter() - begin))
  medians = {name: float(np.median(values)) for name, values in rates.items()}
  import torch

  result = {
    "what": "positions trained per second, median of steps taken in turns",
    "command": "python -m benchmarks.train_throughput",
    "data": pathlib.Path(FLAGS.data).name,
    "model": {"dim": FLAGS.dim, "layers": NUM_LAYERS, "heads": NUM_HEADS, "mlp_dim": FLAGS.dim},
    "users of a batch": FLAGS.users,
    "window": FLAGS.length,
    "rounds": FLAGS.rounds,
    "positions per second": {n: round(v, 1) for n, v in medians.items()},
    "times torch padded": {
      n: round(v / medians["torch padded"], 2) for n, v in medians.items()
    },
    "times torch gathered": {
      n: round(v / medians["torch gathered"], 2) for n, v in medians.items()
    },
    "notes": notes,
    "made with": {
      "jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version(),
      "cpus": os.cpu_count(), "machine": platform.machine(),
    },
  }  # fmt: skip
  print(json.dumps(result, indent=2))
  pathlib.Path(FLAGS.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
  app.run(main)
