"""Full-catalogue KL against dense JAX, dense PyTorch and Liger-Kernel: agreement, time, memory.

  python -m benchmarks.catalog_peers --output=benchmarks/results/catalog_peers

Loss and gradients (query and table) of forward KL in float32 on the CPU. Losses and gradients are
compared first; then all variants are timed in turn, round after round, and the figures are ratios
of medians, so that a busy machine falls on all of them. Memory: what XLA reports as temporary, and
for all variants how far the resident set of a process of its own grows in one call, over inputs
and an imported framework. `floor_ms` is the time of the matrix products alone (forward and both
gradients, counted once) at the float32 rate of a 1024 x 1024 x 1024 product of the same rounds.

PyTorch and Liger-Kernel (`pip install torch==2.13.0 liger-kernel==0.8.5`, the latter without its
dependencies) are no dependencies of this project: the results say which of them is missing.
"""

import argparse
import datetime
import gc
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.catalog_loss import blocked, dense, made_with, make_args
from kdjax import losses
from kdjax.types import FactoredLogits

SIZES = {"tokens": 1024, "items": 100_000, "width": 32, "teacher_width": 128}
MILLION = {"tokens": 1024, "items": 1_000_000, "width": 32, "teacher_width": 128}
PEERS = {"torch": "torch", "liger": "liger_kernel"}
PAUSE = 0.5  # Seconds before a call: threads of OpenMP go on spinning after PyTorch's.
TARGETS = {"torch": 3.5, "liger": 3.5, "dense": 1.9}
FILTER_EPS = 1e-3
SLOPE = 200.0  # What the logits of the filtered case fall by along the catalogue.

Found = tuple[float, Any, Any]  # Loss, gradients of query and table.


def inputs(sizes: dict[str, int]) -> tuple[Any, Any, Any, Any]:
  """Query, table, and those of the teacher, seeded."""
  query, table, (teacher, teacher_table) = make_args(*sizes.values(), labelled=False)
  return query, table, teacher, teacher_table


class Call(NamedTuple):
  """A variant: what runs it, and the bytes of XLA's temporaries, None where it is not XLA's."""

  run: Callable[[], Found]
  temporary: int | None = None

  def __call__(self) -> Found:
    return self.run()


def jax_call(name: str, args) -> Call:
  """A compiled variant on arrays of JAX."""
  fn = {"kdjax": blocked, "dense": dense}[name]
  query, table, *teacher = args
  step = jax.jit(jax.value_and_grad(fn, (0, 1)))
  compiled = step.lower(query, table, tuple(teacher)).compile()

  def call():
    value, grads = jax.block_until_ready(compiled(query, table, tuple(teacher)))
    return value, *grads

  return Call(call, compiled.memory_analysis().temp_size_in_bytes)


def torch_call(name: str, args) -> Call:
  """Dense PyTorch, or Liger-Kernel's chunked Jensen-Shannon loss at its end of forward KL."""
  import torch
  from torch.nn import functional

  query, table, teacher, teacher_table = (torch.tensor(np.asarray(x)) for x in args)
  query.requires_grad_()
  table.requires_grad_()

  def of_torch():
    log_s = functional.log_softmax(query @ table.T, dim=-1)
    with torch.no_grad():
      log_t = functional.log_softmax(teacher @ teacher_table.T, dim=-1)
    return functional.kl_div(log_s, log_t, log_target=True, reduction="batchmean")

  loss = of_torch
  if name == "liger":
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    fused = LigerFusedLinearJSDLoss(
      weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False
    )
    labels = torch.zeros(len(query), dtype=torch.long)
    loss = lambda: fused(query, table, teacher, teacher_table, labels)  # noqa: E731

  def call():
    query.grad = table.grad = None
    value = loss()
    value.backward()
    return value.detach().numpy(), query.grad.numpy(), table.grad.numpy()

  return Call(call)


def make_call(name: str, args) -> Call:
  """The variant of this name."""
  return torch_call(name, args) if name in PEERS else jax_call(name, args)


def missing() -> dict[str, str]:
  """The peers that cannot be imported, and what would install them."""
  asks = {
    "torch": "pip install torch==2.13.0",
    "liger": "pip install --no-deps liger-kernel==0.8.5",
  }
  return {
    name: ask
    for name, ask in asks.items()
    if any(importlib.util.find_spec(PEERS[m]) is None for m in {name, "torch"})
  }


def alternate(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
  """Milliseconds of every call, in turn, after one that does not count."""
  times: dict[str, list[float]] = {name: [] for name in calls}
  for round_ in range(rounds + 1):
    for name, call in calls.items():
      gc.collect()
      time.sleep(PAUSE)
      begin = time.perf_counter()
      call()
      if round_:
        times[name].append(1e3 * (time.perf_counter() - begin))
  return times


def agreement(found: Found, expected: Found) -> dict[str, float]:
  """Relative errors of the loss and of both gradients, the latter by their largest entry."""
  pairs = [(np.asarray(a, np.float64), np.asarray(e, np.float64)) for a, e in zip(found, expected)]  # noqa: B905
  errors = [float(np.max(np.abs(a - e)) / np.max(np.abs(e))) for a, e in pairs]
  return dict(zip(("loss", "query_gradient", "table_gradient"), errors, strict=True))


def resident_growth(name: str, sizes: dict[str, int]) -> float:
  """MB that one call adds to the most a process has held, measured in a process of its own."""
  command = [sys.executable, "-m", "benchmarks.catalog_peers", "--grow", name, json.dumps(sizes)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f"the child that measures {name} failed:\n{done.stderr[-2000:]}")
  return float(done.stdout.split()[-1])


def grow(name: str, sizes: dict[str, int]) -> float:
  """What `resident_growth` runs in its child."""
  tiny = make_call(name, inputs({**sizes, "tokens": 16, "items": 64}))
  tiny()  # Imports, thread pools.
  call = make_call(name, inputs(sizes))
  gc.collect()
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  before = pages * os.sysconf("SC_PAGE_SIZE")
  # Making the program may have held more than is held now: the mark starts anew.
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  call()
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  peak = next(line for line in lines if line.startswith("VmHWM:"))
  most = max(1024 * int(peak.split()[1]), before)
  return (most - before) / 1e6


def floor_ms(sizes: dict[str, int], product_ms: float) -> float:
  """What the products alone take at the rate of a 1024-cube product."""
  flops = 2 * sizes["tokens"] * sizes["items"] * (3 * sizes["width"] + sizes["teacher_width"])
  return flops / (2 * 1024**3 / product_ms)


def race(sizes: dict[str, int], rounds: int, names: list[str], memory: bool = True) -> dict:
  """Agreement, then time and memory, of the variants."""
  args = inputs(sizes)
  calls = {name: make_call(name, args) for name in names}
  expected = calls["dense"]()
  errors = {name: agreement(call(), expected) for name, call in calls.items()}
  worst = max(max(e.values()) for e in errors.values())
  if worst > 1e-4:
    raise RuntimeError(f"losses or gradients differ by more than 1e-4: {errors}")
  square = jax.random.normal(jax.random.key(1), (1024, 1024))
  product = jax.jit(jnp.matmul).lower(square, square).compile()
  timing = calls | {"product": lambda: jax.block_until_ready(product(square, square))}
  times = alternate(timing, rounds)
  median = {name: float(np.median(t)) for name, t in times.items()}
  floor = floor_ms(sizes, median["product"])
  variants = {}
  for name, call in calls.items():
    variants[name] = {
      "median_ms": round(median[name], 1),
      "min_ms": round(min(times[name]), 1),
      "times_ours": round(median[name] / median["kdjax"], 2),
      "share_of_floor": round(floor / median[name], 3),
      "errors": {key: float(f"{e:.1e}") for key, e in errors[name].items()},
    }
    if call.temporary is not None:
      variants[name]["temporary_mb"] = round(call.temporary / 1e6, 1)
  print(json.dumps(variants), flush=True)
  del calls, timing
  if memory:
    for name, found in variants.items():
      found["resident_growth_mb"] = round(resident_growth(name, sizes), 1)
  return {
    "sizes": sizes,
    "rounds": rounds,
    "float32_gflops": round(2 * 1024**3 / median["product"] / 1e6, 1),
    "floor_ms": round(floor, 1),
    "variants": variants,
  }


def verdicts(found: dict) -> dict[str, dict]:
  """Every target with what was measured, and whether it was met."""
  variants = found["variants"]
  checks = {
    f"times faster than {name}": (variants[name]["times_ours"], least)
    for name, least in TARGETS.items()
    if name in variants
  }
  ratio = variants["dense"]["temporary_mb"] / variants["kdjax"]["temporary_mb"]
  checks["temporary memory, dense JAX over ours"] = (round(ratio, 1), 10.0)
  return {
    name: {"measured": value, "target": least, "met": value >= least}
    for name, (value, least) in checks.items()
  }


def million(sizes: dict[str, int]) -> dict:
  """One call at a million items."""
  call = jax_call("kdjax", inputs(sizes))
  call()
  begin = time.perf_counter()
  value, *grads = call()
  finite = all(bool(jnp.all(jnp.isfinite(g))) for g in grads)
  return {
    "sizes": sizes,
    "seconds": round(time.perf_counter() - begin, 2),
    "loss": float(value),
    "finite": finite,
    "temporary_mb": round(call.temporary / 1e6, 1),
    "dense_matrix_mb": round(4 * sizes["tokens"] * sizes["items"] / 1e6, 1),
  }


def filtering(sizes: dict[str, int], rounds: int) -> dict:
  """Whether `filter_eps` pays where logits fall along the catalogue, as if sorted, or do not."""
  query, table, teacher, teacher_table = inputs(sizes)
  falling = -SLOPE * jnp.arange(sizes["items"]) / sizes["items"]
  biases = {"sorted": falling, "any order": jax.random.permutation(jax.random.key(2), falling)}
  calls, grads = {}, {}
  for order, bias in biases.items():
    for eps in (None, FILTER_EPS):

      def loss(student, others, bias, eps=eps):
        query, table = others
        return losses.catalog_kl_loss(student, FactoredLogits(query, table, bias), filter_eps=eps)

      args = FactoredLogits(query, table, bias), (teacher, teacher_table), bias
      compiled = jax.jit(jax.value_and_grad(loss)).lower(*args).compile()
      name = f"{order}, {'exact' if eps is None else 'filtered'}"
      calls[name] = lambda fn=compiled, args=args: jax.block_until_ready(fn(*args))
      grads[name] = calls[name]()[1]
  times = alternate(calls, rounds)
  found: dict[str, Any] = {"sizes": sizes, "filter_eps": FILTER_EPS, "slope": SLOPE}
  # Of the mean over tokens: the largest error of a token's row, over what the bound allows.
  allowed = 2 * FILTER_EPS / sizes["tokens"] * float(jnp.max(jnp.linalg.norm(table, axis=-1)))
  for order in biases:
    exact, filtered = f"{order}, exact", f"{order}, filtered"
    errors = jnp.linalg.norm(grads[exact].query - grads[filtered].query, axis=-1)
    found[order] = {
      "exact_ms": round(float(np.median(times[exact])), 1),
      "filtered_ms": round(float(np.median(times[filtered])), 1),
      "times_faster": round(float(np.median(times[exact]) / np.median(times[filtered])), 2),
      "error_over_bound": float(f"{float(jnp.max(errors)) / allowed:.1e}"),
    }
  return found


def table_of(result: dict) -> str:
  """The figures as Markdown."""
  race_ = result["race"]
  lines = [
    "| variant | ms | times ours | share of the products' floor | XLA temporary MB | "
    "resident growth MB | largest error |",
    "|---|---:|---:|---:|---:|---:|---:|",
  ]
  for name, v in race_["variants"].items():
    lines.append(
      f"| {name} | {v['median_ms']:,.0f} | {v['times_ours']:.2f} | {v['share_of_floor']:.2f} | "
      f"{v.get('temporary_mb', '')} | {v.get('resident_growth_mb', '')} | "
      f"{max(v['errors'].values()):.0e} |"
    )
  lines += ["", "| target | asked | measured | met |", "|---|---:|---:|---|"]
  for name, v in result["targets"].items():
    lines.append(f"| {name} | {v['target']} | {v['measured']} | {'yes' if v['met'] else 'no'} |")
  if "million" in result:
    m = result["million"]
    lines += [
      "",
      f"A million items: {m['seconds']} s a call, {m['temporary_mb']:,.0f} MB temporary (one "
      f"matrix of logits: {m['dense_matrix_mb']:,.0f} MB).",
    ]
  for f in result.get("filtering", ()):
    orders = ", ".join(
      f"{order}: {f[order]['times_faster']:.2f} times the speed of exact gradients"
      for order in ("sorted", "any order")
    )
    items = f"{f['sizes']['items']:,} items"
    lines += ["", f"Gradient filtering, {items}, {f['filter_eps']:g}, peaked logits: {orders}."]
  lines += [f"\nMissing: {name} ({ask})." for name, ask in result["missing"].items()]
  lines += ["", result["note"]]
  return "\n".join(lines)


def run(output: str, rounds: int, sizes: dict[str, int], full: bool, note: str) -> dict:
  """Measures, prints and writes the figures."""
  gone = missing()
  for name, ask in gone.items():
    print(f"{name} is missing: {ask}", flush=True)
  found = race(sizes, rounds, ["kdjax", "dense", *(name for name in PEERS if name not in gone)])
  packages = ("torch", "liger-kernel")
  versions = {
    p: importlib.metadata.version(p) for p, m in zip(packages, PEERS, strict=True) if m not in gone
  }
  result = {
    "command": "python -m benchmarks.catalog_peers " + " ".join(sys.argv[1:]),
    "date": datetime.date.today().isoformat(),
    "made_with": made_with() | versions,
    "seed": 0,
    "note": note,
    "missing": gone,
    "race": found,
    "targets": verdicts(found),
  }
  if full:
    result["filtering"] = both_filtered(sizes, rounds)
    result["million"] = million(MILLION)
  return keep(output, result)


def both_filtered(sizes: dict[str, int], rounds: int) -> list[dict]:
  """`filtering` where exponentials are kept, and where logits are computed twice."""
  rounds = max(3, rounds // 3)
  return [filtering(sizes, rounds), filtering({**MILLION, "tokens": 128}, rounds)]


def keep(output: str, result: dict) -> dict:
  """Writes and prints the figures."""
  path = pathlib.Path(output)
  path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
  path.with_suffix(".md").write_text(table_of(result) + "\n", encoding="utf-8")
  print(table_of(result), flush=True)
  return result


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", default="benchmarks/results/catalog_peers")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--sizes", type=json.loads, default=SIZES, help="as JSON")
  parser.add_argument("--full", action=argparse.BooleanOptionalAction, default=True)
  parser.add_argument(
    "--note",
    default="Ratios are of medians of alternating rounds on a shared machine; other work ran.",
  )
  parser.add_argument("--only_filtering", action="store_true", help="the rest stays as it is")
  parser.add_argument("--grow", nargs=2, metavar=("NAME", "SIZES"), help="what a child is asked")
  options = parser.parse_args()
  if options.grow:
    print(grow(options.grow[0], json.loads(options.grow[1])))
  elif options.only_filtering:
    before = json.loads(pathlib.Path(options.output).with_suffix(".json").read_text())
    found = both_filtered(options.sizes, options.rounds)
    keep(options.output, before | {"filtering": found})
  else:
    run(options.output, options.rounds, options.sizes, options.full, options.note)
