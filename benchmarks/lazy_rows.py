"""Tables of millions of rows: steps a second of lazy updates by rows against dense Adam.

    python -m benchmarks.lazy_rows --speed
    python -m benchmarks.lazy_rows --quality --data=../shared/data/amazon-video-games

Speed: matrix factorisation with BPR over a table of 2,000,000 items and one of 200,000 users, width
64, float32, on random pairs whose items are as unevenly popular as in logs (Zipf). The dense side
is the same step with `optax.adam`, whose gradient, moments and parameters are whole tables. Both
are compiled loops of the library, run in turns in one process, and must give the same losses. The
memory is what XLA says of each compiled program: `state` is params and moments, `temporary` what it
needs beside them.

Quality: the same flags of experiments.train with and without --lazy_tables, a few seeds each.

Each part keeps the other part of the result file.
"""

import json
import os
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from benchmarks.evaluate_catalog import processor
from experiments import train
from experiments.config import DataConfig, FitConfig, ModelConfig
from kdjax import losses, models
from kdjax.reduce import totals
from kdjax.train import (
  Term,
  init_state,
  jit_runner,
  lazy_adamw,
  make_objective,
  make_train_step,
)
from kdjax.tree import under

FLAGS = flags.FLAGS
flags.DEFINE_bool("speed", False, "Measure steps a second and memory.")
flags.DEFINE_bool("quality", False, "Train on a log, by rows and whole.")
flags.DEFINE_string("data", "../shared/data/amazon-video-games", "The log of --quality.")
flags.DEFINE_string("runs", "runs/lazy_rows", "Where the trainings of --quality go.")
flags.DEFINE_integer("seeds", 3, "Trainings of --quality on each side.")
flags.DEFINE_integer("items", 2_000_000, "Rows of the items' table.")
flags.DEFINE_integer("users", 200_000, "Rows of the users' table.")
flags.DEFINE_integer("dim", 64, "Width of both.")
flags.DEFINE_integer("pairs", 1024, "Pairs of a batch.")
flags.DEFINE_list("negatives", ["4", "64"], "Negatives of a pair, a measurement each.")
flags.DEFINE_integer("rounds", 5, "Timed calls of each side.")
flags.DEFINE_integer("steps", 8, "Steps of a call.")
flags.DEFINE_string("out", "benchmarks/results/lazy_rows.json", "Where the figures go.")

SEED, RATE, TARGET = 0, 1e-3, 10.0
ROWS_OF = {
  ("user_embedding", "embedding"): "user",
  ("item_embedding", "embedding"): "candidates",
  ("item_bias",): "candidates",
}
NAMES = ("dense", "lazy")


def draw(negatives: int, count: int) -> dict[str, np.ndarray]:
  """Pairs with their candidates, items by a Zipf law of exponent 1."""
  rng = np.random.default_rng(SEED)
  place = rng.random((count, 1 + negatives))
  items = np.exp(place * np.log(FLAGS.items)).astype(np.int64) - 1
  order = rng.permutation(FLAGS.items)
  return {
    "user": rng.integers(0, FLAGS.users, count).astype(np.int32),
    "candidates": order[np.minimum(items, FLAGS.items - 1)].astype(np.int32),
  }


def bpr(student: Any, teacher: Any, batch: Any) -> Any:
  """BPR of the first candidate against the others."""
  del teacher
  scores = student.logits.at(batch["candidates"])
  return losses.bpr_loss(scores[:, 0], scores[:, 1:], reduce_fn=totals)


def make(name: str, arrays: dict[str, Any]) -> tuple[Any, Any]:
  """A compiled runner of one side, and the state that it starts from."""
  model = models.make_mf(num_users=FLAGS.users, num_items=FLAGS.items, dim=FLAGS.dim)
  goal = make_objective(model.apply, [Term("bpr", bpr)])
  tx, options = optax.adam(RATE), {}
  if name == "lazy":
    tx = lazy_adamw(RATE, tables=under("student", select=lambda path, leaf: path in ROWS_OF))
    options["read_rows"] = lambda batch: {path: batch[key] for path, key in ROWS_OF.items()}
  runner = jit_runner(make_train_step(goal, tx, **options))
  params = model.init(jax.random.key(SEED), jax.tree.map(lambda x: x[:1], arrays))
  state = jax.jit(lambda p: init_state({"student": p, "helpers": {}}, tx), donate_argnums=0)(params)
  return runner, state


def measure(negatives: int) -> dict[str, Any]:
  """Both sides in turns over the same batches."""
  calls = FLAGS.rounds + 1
  arrays = jax.tree.map(jnp.asarray, draw(negatives, FLAGS.pairs * FLAGS.steps * calls))
  index = np.arange(FLAGS.pairs * FLAGS.steps * calls, dtype=np.int32)
  index = index.reshape(calls, FLAGS.steps, FLAGS.pairs)
  key = jax.random.key(SEED)
  programs, states, memory = {}, {}, {}
  for name in NAMES:
    runner, states[name] = make(name, arrays)
    given = (states[name], None, arrays, index[0], FLAGS.steps, key)
    programs[name] = runner.lower(*given).compile()
    found = programs[name].memory_analysis()
    memory[name] = {
      "state_bytes": sum(x.nbytes for x in jax.tree.leaves(states[name])),
      "temporary_bytes": found.temp_size_in_bytes,
      "donated_bytes": found.alias_size_in_bytes,
    }
  seconds: dict[str, list[float]] = {name: [] for name in NAMES}
  told: dict[str, list[float]] = {name: [] for name in NAMES}
  for call in range(calls):  # The first touches the memory, and is not timed.
    for name in NAMES:
      start = time.perf_counter()
      rest = (None, arrays, index[call], FLAGS.steps, key)
      states[name], metrics = jax.block_until_ready(programs[name](states[name], *rest))
      if call:
        seconds[name].append((time.perf_counter() - start) / FLAGS.steps)
      told[name] += np.asarray(metrics["loss"]).tolist()
  apart = np.abs(np.subtract(told["dense"], told["lazy"])).max()
  if apart > 1e-5:
    raise AssertionError(f"the two sides disagree on the losses by {apart}")
  median = {name: float(np.median(values)) for name, values in seconds.items()}
  unique = len(np.unique(np.asarray(arrays["candidates"][: FLAGS.pairs])))
  return {
    "pairs": FLAGS.pairs,
    "candidates_of_a_pair": 1 + negatives,
    "different_items_of_a_batch": unique,
    "seconds_a_step": {name: [round(x, 5) for x in values] for name, values in seconds.items()},
    "steps_a_second": {name: round(1 / x, 3) for name, x in median.items()},
    "times_faster": round(median["dense"] / median["lazy"], 1),
    "memory": memory,
    "losses_apart": float(apart),
  }


def speed() -> dict[str, Any]:
  """All measurements, and whether the target was met."""
  cases = {f"{n} negatives": measure(int(n)) for n in FLAGS.negatives}
  for name, case in cases.items():
    print(name, json.dumps(case, indent=2), flush=True)
  return {
    "what": "BPR matrix factorisation, float32: dense optax.adam against lazy updates by rows",
    "command": "python -m benchmarks.lazy_rows --speed",
    "items": FLAGS.items,
    "users": FLAGS.users,
    "dim": FLAGS.dim,
    "steps_of_a_call": FLAGS.steps,
    "seed": SEED,
    "target_times": TARGET,
    "target_met": {name: case["times_faster"] >= TARGET for name, case in cases.items()},
    "cases": cases,
    **machine(),
  }


def quality() -> dict[str, Any]:
  """Trainings by the flags, whole and by rows."""
  found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
  fit = {
    "epochs": 25, "batch_size": 1024, "num_negatives": 16, "optimizer": "adam", "patience": 3,
    "learning_rate": 3e-3, "progress": False, "tensorboard": False,
  }  # fmt: skip
  model = ModelConfig(model="mf", dim=64)
  for seed in range(FLAGS.seeds):
    for name in NAMES:
      options: dict[str, Any] = {**fit, "seed": seed, "lazy_tables": name == "lazy"}
      config = train.Config(DataConfig(dataset=FLAGS.data), model, FitConfig(**options))
      result = train.run(config, pathlib.Path(FLAGS.runs) / f"{name}_{seed}")
      ndcg = result["quality"]["ndcg@10"]
      found[name].append({
        "seed": seed,
        "test_ndcg@10": ndcg,
        "test_hr@10": result["quality"]["hr@10"]["value"],
        "best_valid_ndcg@10": result["training"]["best_valid"],
        "steps": result["training"]["steps"],
      })  # fmt: skip
  ndcgs = {name: [run["test_ndcg@10"]["value"] for run in runs] for name, runs in found.items()}
  return {
    "what": "experiments.train --model=mf on amazon-video-games, with and without --lazy_tables",
    "command": f"python -m benchmarks.lazy_rows --quality --seeds={FLAGS.seeds}",
    "flags": {"model": "mf", "dim": 64, "label_loss": "bpr", **fit},
    "test_ndcg@10_mean": {name: round(float(np.mean(x)), 5) for name, x in ndcgs.items()},
    "test_ndcg@10_apart": [round(b - a, 5) for a, b in zip(*ndcgs.values(), strict=True)],
    "runs": found,
    **machine(),
  }


def machine() -> dict[str, Any]:
  """Where and with what it ran."""
  return {
    "hardware": {
      "cpus": os.cpu_count(),
      "processor": processor(),
      "backend": jax.default_backend(),
      "load_average_at_end": round(os.getloadavg()[0], 1),
      "note": "other programs ran beside it: only ratios within this process mean something",
    },
    "versions": {
      "python": sys.version.split()[0],
      "jax": jax.__version__,
      "optax": optax.__version__,
      "numpy": np.__version__,
    },
  }


def main(argv: list[str]) -> None:
  """Runs what the flags ask for, and writes the result file."""
  del argv
  out = pathlib.Path(FLAGS.out)
  result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
  if FLAGS.speed:
    result["speed"] = speed()
  if FLAGS.quality:
    result["quality"] = quality()
  out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
  app.run(main)
