"""Catalogue losses in blocks against the dense textbook versions: time and memory.

  python -m benchmarks.catalog_loss --output=benchmarks/results/catalog_loss.json

Value and gradients (query and table), compiled. The variants of a case are timed in turn, round
after round, so that a busy moment of the machine falls on all of them. Memory is what XLA reports
as temporary (`temp_size_in_bytes`) of the compiled program. `floor_ms` is the time that the matrix
products alone (forward and both gradients, counted once) would take at the float32 rate of a
1024 x 1024 x 1024 product measured in the same run.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.types import FactoredLogits

# tokens, items, width of the student, width of the teacher (0: none), whether there are labels.
CASES = {
  "cross_entropy": (16384, 3416, 64, 0, True),
  "kl": (16384, 3416, 64, 128, False),
  "distillation": (16384, 3416, 64, 128, True),
  "kl_large_catalogue": (1024, 100_000, 32, 128, False),
}


def make_args(tokens, items, width, teacher_width, labelled):
  """Random queries and tables at the scale of trained ones; labels, a teacher, or both."""
  keys = iter(jax.random.split(jax.random.key(0), 6))
  query = jax.random.normal(next(keys), (tokens, width))
  table = jax.random.normal(next(keys), (items, width)) / np.sqrt(width)
  labels = (jax.random.randint(next(keys), (tokens,), 0, items),) if labelled else ()
  if not teacher_width:
    return query, table, labels
  teacher = jax.random.normal(next(keys), (tokens, teacher_width))
  teacher_table = jax.random.normal(next(keys), (items, teacher_width)) / np.sqrt(teacher_width)
  return query, table, (*labels, teacher, teacher_table)


def dense(query, table, target):
  """The textbook: both matrices of logits, log softmax, sum."""
  log_s = jax.nn.log_softmax(jnp.matmul(query, table.T, preferred_element_type=jnp.float32))
  loss = 0.0
  if len(target) != 2:
    loss -= jnp.mean(jnp.take_along_axis(log_s, target[0][:, None], axis=1))
  if len(target) == 1:
    return loss
  teacher, teacher_table = target[-2:]
  logits = jnp.matmul(teacher, teacher_table.T, preferred_element_type=jnp.float32)
  log_t = jax.nn.log_softmax(jax.lax.stop_gradient(logits))
  return loss + jnp.mean(jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1))


def blocked(query, table, target):
  """The library's."""
  student = FactoredLogits(query, table)
  if len(target) == 1:
    return losses.catalog_cross_entropy_loss(student, target[0])
  teacher = FactoredLogits(*target[-2:])
  if len(target) == 2:
    return losses.catalog_kl_loss(student, teacher)
  weights = {"label_weight": 1.0, "distill_weight": 1.0}
  return losses.catalog_distillation_loss(student, teacher, target[0], **weights)


def two_sweeps(query, table, target):
  """The library's, cross-entropy and KL each by itself."""
  return blocked(query, table, target[:1]) + blocked(query, table, target[1:])


def half(tree):
  """Floats in bfloat16."""
  return jax.tree.map(
    lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
  )


def timed(calls, rounds):
  """Median and minimum in ms, by name; interleaved."""
  times = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      begin = time.perf_counter()
      jax.block_until_ready(call())
      times[name].append(1e3 * (time.perf_counter() - begin))
  return {
    name: {"median_ms": round(float(np.median(t)), 2), "min_ms": round(min(t), 2)}
    for name, t in times.items()
  }


def measure(case, rounds):
  """Time, memory and agreement of the variants of one case."""
  args = make_args(*case)
  tokens, items, width, teacher_width, labelled = case
  square = jax.random.normal(jax.random.key(1), (1024, 1024))
  variants = {
    "dense": (dense, args),
    "blocked": (blocked, args),
    "dense bfloat16": (dense, half(args)),
    "blocked bfloat16": (blocked, half(args)),
  }
  if labelled and teacher_width:
    variants |= {
      "two sweeps": (two_sweeps, args),
      "two sweeps bfloat16": (two_sweeps, half(args)),
    }
  compiled = {
    name: (jax.jit(jax.value_and_grad(fn, (0, 1))).lower(*a).compile(), a)
    for name, (fn, a) in variants.items()
  }
  product = jax.jit(jnp.matmul).lower(square, square).compile()
  values, grads = {}, {}
  for name, (fn, a) in compiled.items():
    value, grad = fn(*a)
    values[name] = round(float(value), 6)
    grads[name] = np.asarray(grad[1], np.float32)
  calls = {name: (lambda fn=fn, a=a: fn(*a)) for name, (fn, a) in compiled.items()}
  times = timed(calls | {"product": lambda: product(square, square)}, rounds)
  flops_per_ms = 2 * 1024**3 / times.pop("product")["min_ms"]
  flops = 2 * tokens * items * (3 * width + teacher_width)
  for name, (fn, _) in compiled.items():
    memory = fn.memory_analysis()
    if memory is not None:
      times[name]["temporary_mb"] = round(memory.temp_size_in_bytes / 1e6, 1)
    scale = np.max(np.abs(grads["dense"]))
    error = float(np.max(np.abs(grads[name] - grads["dense"])) / scale)
    times[name] |= {"loss": values[name], "table_gradient_error": float(f"{error:.1e}")}
  plain, ours = times["dense"], times["blocked"]
  return {
    "tokens": tokens,
    "items": items,
    "student_width": width,
    "teacher_width": teacher_width,
    "variants": times,
    "speedup_float32": round(plain["median_ms"] / ours["median_ms"], 2),
    "speedup_bfloat16": round(
      times["dense bfloat16"]["median_ms"] / times["blocked bfloat16"]["median_ms"], 2
    ),
    "memory_ratio": round(plain["temporary_mb"] / ours["temporary_mb"], 1),
    "float32_gflops": round(flops_per_ms / 1e6, 1),
    "floor_ms": round(flops / flops_per_ms, 1),
  }


def run(output: str, rounds: int) -> dict:
  """Measures every case, prints and writes the figures."""
  result = {
    "command": "python -m benchmarks.catalog_loss " + " ".join(sys.argv[1:]),
    "date": datetime.date.today().isoformat(),
    "made_with": made_with(),
    "rounds": rounds,
    "cases": {},
  }
  for name, case in CASES.items():
    found = result["cases"][name] = measure(case, rounds)
    print(name, json.dumps(found, indent=2), flush=True)
  pathlib.Path(output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
  return result


def made_with() -> dict[str, str | float | None]:
  """Versions, machine and how busy it is: what stands beside every figure."""
  return {
    "jax": jax.__version__,
    "python": platform.python_version(),
    "device": jax.devices()[0].device_kind,
    "cpu": cpu_name(),
    "cores": os.cpu_count(),
    "load_before": round(os.getloadavg()[0], 2),
  }


def cpu_name() -> str:
  """As the operating system calls it."""
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith("model name"):
        return line.split(":", 1)[1].strip()
  return platform.processor() or platform.machine()


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", default="benchmarks/results/catalog_loss.json")
  parser.add_argument("--rounds", type=int, default=7)
  options = parser.parse_args()
  run(options.output, options.rounds)
