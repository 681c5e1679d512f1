"""int8 products against float ones, at the shapes that models use, on this machine.

  python -m benchmarks.int8_dot --output=benchmarks/results/int8_dot.json

Every variant of a shape is timed in turn, round after round, so that a busy moment of the machine
falls on all of them; the table gives the median and the fastest of all calls. Times include the
dispatch of one call from Python (about 10 us). Variants:

  float32      x @ w, both float32
  bfloat16     x @ w, x cast on the way, w stored in bfloat16, float32 result
  bare         int8 x int8 -> int32, nothing else: the activations are int8 already
  dot          `kdjax.quant.dot` (or `QTensor.rdot`) as `dot_plan` decides
  integer      the integer product, whatever `dot_plan` says, without padding
  padded       the same with a single row padded to two
  unfused      activations quantised by a separate compiled call
  dequantized  int8 weights cast to float32, then a float product
"""

import argparse
import datetime
import functools
import json
import os
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.quant.dot import dot
from kdjax.quant.integer import dot_plan, symmetric_scale
from kdjax.quant.qtensor import QTensor, dequantize, quantize

SHAPES = [
  *((rows, 64, 256, "kernel") for rows in (1, 16, 256, 2048)),
  *((rows, 1024, 1024, "kernel") for rows in (1, 16, 256, 2048)),
  *((rows, 48, 3416, "table") for rows in (1, 16, 256)),
  *((rows, 64, 23715, "table") for rows in (1, 16, 256)),
  (1, 64, 64, "kernel"),
  (1, 128, 256, "kernel"),
  (1, 256, 256, "kernel"),
  (1, 256, 1024, "kernel"),
]


def quantize_rows(x):
  """int8 rows and their scales, as `integer_dot` makes them."""
  scale = symmetric_scale(x, axis=-1)
  return jnp.round(x * (1 / scale)).astype(jnp.int8), scale


def product(x, w, table, dtype):
  """The bare contraction: with axis 1 of a table, axis 0 of a kernel."""
  return jax.lax.dot_general(
    x, w, (((1,), (1 if table else 0,)), ((), ())), preferred_element_type=dtype
  )


def integer(x, w: QTensor, table, rows=0):
  """The integer product in one compiled call, padded to at least `rows`."""
  quantized, scale = quantize_rows(x)
  padded = jnp.pad(quantized, ((0, max(rows - len(x), 0)), (0, 0)))
  total = product(padded, w.values, table, jnp.int32)[: len(x)]
  return total.astype(jnp.float32) * (scale * w.scale.reshape(1, -1))


def make_variants(rows, contraction, outputs, layout):
  """Callables without arguments, by name; all compiled."""
  table = layout == "table"
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(rows, contraction)), jnp.float32)
  shape = (outputs, contraction) if table else (contraction, outputs)
  w = jnp.asarray(rng.normal(size=shape), jnp.float32)
  q = quantize(w, axis=1 if table else 0)
  half, x8 = w.astype(jnp.bfloat16), quantize_rows(x)[0]
  quantize_call = jax.jit(quantize_rows)
  rest = jax.jit(
    lambda x8, scale, q: (
      product(x8, q.values, table, jnp.int32).astype(jnp.float32) * (scale * q.scale.reshape(1, -1))
    )
  )
  calls = {
    "float32": (lambda x, w: product(x, w, table, jnp.float32), (x, w)),
    "bfloat16": (
      lambda x, w: product(x.astype(jnp.bfloat16), w, table, jnp.float32),
      (x, half),
    ),
    "bare": (lambda x8, v: product(x8, v, table, jnp.int32), (x8, q.values)),
    "dot": ((lambda x, q: q.rdot(x)) if table else dot, (x, q)),
    "integer": (lambda x, q: integer(x, q, table), (x, q)),
    "dequantized": (lambda x, q: product(x, dequantize(q), table, jnp.float32), (x, q)),
  }
  if rows == 1:
    calls["padded"] = (lambda x, q: integer(x, q, table, rows=2), (x, q))
  variants = {name: functools.partial(jax.jit(fn), *args) for name, (fn, args) in calls.items()}
  variants["unfused"] = lambda: rest(*quantize_call(x), q)
  return variants


def measure(variants, seconds):
  """Median and minimum in microseconds, by name; interleaved."""
  for call in variants.values():
    jax.block_until_ready(call())
  times = {name: [] for name in variants}
  start = time.perf_counter()
  while time.perf_counter() - start < seconds or len(next(iter(times.values()))) < 10:
    for name, call in variants.items():
      for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times[name].append(1e6 * (time.perf_counter() - begin))
  return {
    name: {"median_us": round(float(np.median(t)), 1), "min_us": round(min(t), 1), "calls": len(t)}
    for name, t in times.items()
  }


def hardware():
  """What it ran on."""
  name = platform.processor() or platform.machine()
  info = pathlib.Path("/proc/cpuinfo")
  flags = []
  if info.exists():
    lines = dict(
      (part.strip() for part in line.split(":", 1))
      for line in info.read_text().splitlines()
      if ":" in line
    )
    name = f"{lines.get('model name', name)}, model {lines.get('model')}"
    flags = sorted(f for f in lines.get("flags", "").split() if "vnni" in f or "amx" in f)
  return {
    "device": jax.devices()[0].device_kind,
    "cpu": name,
    "flags": flags,
    "cores": os.cpu_count(),
  }


def main():
  """Times every shape and writes the results."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", default="benchmarks/results/int8_dot.json")
  parser.add_argument("--seconds", type=float, default=3.0, help="per shape")
  args = parser.parse_args()
  load = os.getloadavg()[0]
  rows_out = []
  for rows, contraction, outputs, layout in SHAPES:
    times = measure(make_variants(rows, contraction, outputs, layout), args.seconds)
    plan = dot_plan((rows, contraction, outputs))
    rows_out.append(
      {
        "rows": rows,
        "contraction": contraction,
        "outputs": outputs,
        "layout": layout,
        "plan": plan._asdict(),
        "times": times,
        "speedup_over_float32": round(times["float32"]["median_us"] / times["dot"]["median_us"], 2),
        "over_bare": round(times["dot"]["median_us"] / times["bare"]["median_us"], 2),
      }
    )
    medians = " ".join(f"{name}={t['median_us']:.0f}" for name, t in times.items())
    print(f"[{rows}, {contraction}] x {outputs} {layout}: {medians}", flush=True)
  result = {
    "command": f"python -m benchmarks.int8_dot --seconds={args.seconds:g}",
    "date": datetime.date.today().isoformat(),
    "hardware": hardware(),
    "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
    "versions": {
      "python": platform.python_version(),
      "jax": jax.__version__,
      "jaxlib": jax.lib.__version__,
      "numpy": np.__version__,
    },
    "unit": "microseconds per call, dispatch included",
    "rows": rows_out,
  }
  path = pathlib.Path(args.output)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
