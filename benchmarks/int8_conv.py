"""int8 convolutions against float ones, at the shapes of small image models, on this machine.

  python -m benchmarks.int8_conv

Both are timed in turns; the table gives the median of all calls. `integer` is the int8 convolution
whatever `conv_plan` says, `conv` what it decides.
"""

import argparse
import functools
import json
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.int8_dot import hardware, measure
from kdjax.quant.conv import LIMITS, conv, conv_plan
from kdjax.quant.qtensor import quantize

# Examples, height and width, channels in and out, window, stride.
SHAPES = [
  (1, 28, 1, 16, 3, 1),
  (1, 28, 16, 32, 3, 1),
  (1, 28, 24, 24, 3, 1),
  (1, 28, 32, 32, 3, 1),
  (1, 14, 32, 32, 3, 1),
  (1, 14, 32, 64, 3, 2),
  (1, 14, 64, 64, 3, 1),
  (1, 14, 64, 64, 1, 1),
  (1, 7, 64, 64, 3, 1),
  (1, 7, 128, 128, 3, 1),
  (4, 14, 32, 32, 3, 1),
  (64, 28, 1, 16, 3, 1),
  (64, 28, 16, 16, 3, 1),
  (64, 28, 24, 24, 3, 1),
  (64, 14, 32, 32, 3, 1),
  (64, 28, 32, 64, 3, 2),
  (64, 14, 64, 64, 3, 1),
  (64, 14, 64, 64, 1, 1),
  (64, 7, 128, 128, 3, 1),
]


def variants(shape):
  """Compiled calls by name."""
  count, side, inputs, outputs, window, stride = shape
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(count, side, side, inputs)), jnp.float32)
  w = jnp.asarray(rng.normal(size=(window, window, inputs, outputs)), jnp.float32)
  q = quantize(w, axis=(0, 1, 2))
  fn = functools.partial(conv, strides=stride)
  calls = {"float32": (jax.jit(fn), w), "conv": (jax.jit(fn).lower(x, q).compile(), q)}
  with mock.patch.dict(LIMITS, clear=True):
    # A function of its own, or it would be found compiled.
    calls["integer"] = (jax.jit(lambda x, q: fn(x, q)).lower(x, q).compile(), q)
  return {name: functools.partial(call, x, kernel) for name, (call, kernel) in calls.items()}


def main():
  """Times every shape and writes the results."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", default="benchmarks/results/int8_conv.json")
  parser.add_argument("--seconds", type=float, default=2.0, help="per shape")
  args = parser.parse_args()
  rows = []
  for shape in SHAPES:
    times = measure(variants(shape), args.seconds)
    medians = {name: t["median_us"] for name, t in times.items()}
    plan = conv_plan((shape[4], shape[4], *shape[2:4]), shape[0] * (shape[1] // shape[5]) ** 2)
    rows.append(
      {
        **dict(zip(("examples", "side", "in", "out", "window", "stride"), shape, strict=True)),
        "plan": plan.reason,
        "median_us": medians,
        "speedup_over_float32": round(medians["float32"] / medians["conv"], 2),
        "integer_over_float32": round(medians["float32"] / medians["integer"], 2),
      }
    )
    print(shape, plan.reason, medians, rows[-1]["speedup_over_float32"], flush=True)
  result = {
    "command": f"python -m benchmarks.int8_conv --seconds={args.seconds:g}",
    "hardware": hardware(),
    "versions": {"jax": jax.__version__, "numpy": np.__version__},
    "rows": rows,
  }
  pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
