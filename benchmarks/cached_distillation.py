"""Positions distilled per second: live and dense against a teacher that was cached.

python -m benchmarks.cached_distillation

One train step (SASRec from SASRec, KL, Adam, next items of the same random histories) in five ways:
the textbook's, where the teacher runs beside the student and both [positions, items] matrices are
there; live in blocks, the same numbers without them; from the teacher's best 100 of every position
and the exact mass of the rest, as `experiments.cache_teacher` codes them (bfloat16, decoded in the
step); with draws from that rest beside them; and from the best alone with the student's own rest
estimated by shared negatives (`--sampled_rest`). Steps are timed in turns in one process.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from benchmarks.catalog_loss import made_with
from kdjax import losses, models
from kdjax.cost import time_calls
from kdjax.data import batches
from kdjax.train import objective, state, step, teacher_cache

FLAGS = flags.FLAGS
flags.DEFINE_string("out", "benchmarks/results/cached_distillation.json", "Where the figures go.")
flags.DEFINE_integer("items", 100_000, "Items of the catalogue.")
flags.DEFINE_integer("rows", 20, "Rows of a step.")
flags.DEFINE_integer("length", 50, "Positions of a row.")
flags.DEFINE_integer("dim", 32, "Width of the student.")
flags.DEFINE_integer("teacher_dim", 128, "Width of the teacher.")
flags.DEFINE_integer("top_k", 100, "The teacher's best that are kept of a position.")
flags.DEFINE_integer("samples", 100, "Draws from the rest, where there are some.")
flags.DEFINE_integer("negatives", 4096, "Shared negatives of a step.")
flags.DEFINE_integer("calls", 9, "Timed steps of each.")


def main(argv: list[str]) -> None:
  """Writes the figures."""
  del argv
  rng = np.random.default_rng(0)
  shape, items = (FLAGS.rows, FLAGS.length), FLAGS.items
  rows = batches.complete(rng.integers(0, items, shape).astype(np.int32))
  batch = {name: jnp.asarray(values) for name, values in rows.items()}

  def make(dim: int) -> Any:
    return models.make_sasrec(
      num_items=items, max_length=FLAGS.length, dim=dim, num_layers=2, dropout=0.0
    )

  student, teacher = make(FLAGS.dim), make(FLAGS.teacher_dim)
  large = teacher.init(jax.random.key(1), batch)
  large = jax.tree.map(lambda x: 10 * x, large)  # A teacher that prefers some items to others.

  def cached(samples: int = 0) -> tuple[Any, dict[str, Any]]:
    coding = teacher_cache.Coding(items, FLAGS.top_k, "bfloat16", samples)
    coded = teacher_cache.encode_rows(teacher.apply, large, rows, coding)
    kept = {teacher_cache.NAME: jnp.asarray(coded), "key": jax.random.key(3)}
    return teacher_cache.with_cache(coding), {**batch, **kept}

  def negatives(batch):
    drawn = jax.random.randint(batch["key"], (FLAGS.negatives,), 0, items)
    return losses.Negatives(drawn, jnp.full(FLAGS.negatives, -np.log(items), jnp.float32))

  def dense(own, other, batch):
    del batch
    return losses.kl_loss(own.logits.dense(), other.logits.dense())

  ways = {
    "live, dense": (dense, (teacher.apply, batch)),
    "live, in blocks": (
      lambda s, t, b: losses.catalog_kl_loss(s.logits, t.logits),
      (teacher.apply, batch),
    ),
    "cached": (lambda s, t, b: losses.catalog_top_k_kl_loss(s.logits, t.logits), cached()),
    "cached with draws": (
      lambda s, t, b: losses.catalog_sampled_cross_entropy_loss(s.logits, t.logits),
      cached(FLAGS.samples),
    ),
    "cached, rest sampled": (
      lambda s, t, b: losses.catalog_top_k_kl_loss(s.logits, t.logits, negatives=negatives(b)),
      cached(),
    ),
  }
  small = student.init(jax.random.key(0), batch)
  calls, values, memory = {}, {}, {}
  for name, (loss, (teacher_apply, given)) in ways.items():
    terms = [objective.Term("kl", loss)]
    goal = objective.make_objective(student.apply, terms, teacher_apply=teacher_apply)
    tx = optax.adam(1e-3)
    beside = large if name.startswith("live") else {}
    params = goal.init(jax.random.key(0), small, beside, given)
    run = jax.jit(step.make_train_step(goal, tx), donate_argnums=0)
    carry = {"state": jax.tree.map(jnp.array, state.init_state(params, tx))}
    memory[name] = run.lower(carry["state"], beside, given, jax.random.key(0)).compile()
    memory[name] = memory[name].memory_analysis().temp_size_in_bytes

    def call(run=run, carry=carry, beside=beside, given=given, name=name):
      carry["state"], metrics = run(carry["state"], beside, given, jax.random.key(0))
      values.setdefault(name, float(metrics["loss"]))
      return carry["state"].step

    calls[name] = call
  times = time_calls(calls, num_calls=FLAGS.calls, burst=1)
  seconds = {name: float(np.median(t)) for name, t in times.items()}
  first = next(iter(ways))
  result = {
    "what": "positions distilled per second, median of steps taken in turns",
    "command": "python -m benchmarks.cached_distillation",
    "items": items, "rows": FLAGS.rows, "length": FLAGS.length, "top_k": FLAGS.top_k,
    "samples": FLAGS.samples,
    "dim": FLAGS.dim, "teacher_dim": FLAGS.teacher_dim, "negatives": FLAGS.negatives,
    "loss of the first step": values,
    "positions per second": {n: round(rows["items"].size / s, 1) for n, s in seconds.items()},
    "times the first": {n: round(seconds[first] / s, 2) for n, s in seconds.items()},
    "MB of temporaries": {n: round(m / 1e6, 1) for n, m in memory.items()},
    "made with": made_with(),
  }  # fmt: skip
  pathlib.Path(FLAGS.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  print(json.dumps(result, indent=1))


if __name__ == "__main__":
  app.run(main)
