"""Latency and size of shrunk models: any function, units that leave the arrays.

  python -m benchmarks.shrink_models --output=benchmarks/results/shrink_models.json

Half, and a quarter, of every group that `kdjax.prune.shrink` finds stays. The whole model, the same
with masks (which speed up nothing) and the shrunk ones are timed in turn. The largest difference
between masked and shrunk outputs stands beside the times, over the largest output.
"""

import argparse
import datetime
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.catalog_loss import made_with, timed
from kdjax import models, prune
from kdjax.tree import count_params

KEY = jax.random.key(0)
SHARES = (0.5, 0.25)


class Encoder(nn.Module):
  """Stock Linen: pre-norm blocks over tokens."""

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(4096, 256)(tokens)
    for _ in range(4):
      x = x + nn.MultiHeadDotProductAttention(num_heads=8)(nn.LayerNorm()(x))
      x = x + nn.Dense(256)(nn.gelu(nn.Dense(1024)(nn.LayerNorm()(x))))
    return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


class Residual(nn.Module):
  """Stock Linen: a small residual network."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(32, (3, 3))(x)
    for width in (32, 64, 128):
      y = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(width, (3, 3))(x)))
      x = nn.relu(nn.Conv(width, (1, 1))(x) + nn.Conv(width, (3, 3))(y))
      x = nn.avg_pool(x, (2, 2), (2, 2))
    return nn.Dense(10)(x.mean((1, 2)))


def sasrec():
  """The built-in one, at the size of the MovieLens teacher, scoring one position."""
  model = models.make_sasrec(num_items=3416, max_length=200, dim=128, num_heads=2, mlp_dim=256)
  row = jnp.arange(200)[None]
  batch = {"items": row, "segments": jnp.ones_like(row), "positions": row}

  def apply(params, batch):
    logits = model.apply(params, batch).logits
    return logits._replace(query=logits.query[:, -1]).dense()

  return apply, model.init(KEY, batch), batch


def linen(module, x):
  """A module on an example."""
  return module.apply, module.init(KEY, x), x


def network():
  """NNX, by its pure function."""
  graph, params = nnx.split(nnx.Sequential(
    nnx.Linear(512, 2048, rngs=nnx.Rngs(0)), nnx.relu,
    nnx.Linear(2048, 2048, rngs=nnx.Rngs(1)), nnx.relu,
    nnx.Linear(2048, 10, rngs=nnx.Rngs(2)),
  ))  # fmt: skip
  return lambda params, x: nnx.merge(graph, params)(x), params, jnp.ones([64, 512])


MODELS = {
  "SASRec, one request of 200 items": sasrec,
  "Linen encoder, 8 x 128 tokens": lambda: linen(
    Encoder(), jax.random.randint(KEY, (8, 128), 0, 4096)
  ),
  "Linen residual network, 8 x 32 x 32": lambda: linen(
    Residual(), jax.random.normal(KEY, (8, 32, 32, 3))
  ),
  "NNX perceptron, 64 rows": network,
}


def measure(make, rounds):
  """One model at all shares."""
  apply, params, example = make()
  axes = prune.find_axes(apply, params, example)
  compiled = jax.jit(apply)
  calls = {"whole": lambda: compiled(params, example)}
  found = {"groups": len(prune.axis_sizes(params, axes)), "parameters": count_params(params)}
  shares = {}
  for share in SHARES:
    small = prune.shrink(apply, params, example, keep=share)
    masked = prune.apply_masks(params, prune.mask_axes(params, axes, small.keep))
    call = jax.jit(small.apply)
    expected, got = compiled(masked, example), call(small.params, example)
    shares[f"{share:g}"] = {
      "parameters": count_params(small.params),
      "error": float(f"{np.max(np.abs(expected - got)) / np.max(np.abs(expected)):.1e}"),
    }
    calls[f"masked {share:g}"] = lambda masked=masked: compiled(masked, example)
    calls[f"{share:g}"] = lambda call=call, small=small: call(small.params, example)
  times = timed(calls, rounds)
  for share in shares:
    shares[share]["masked_ms"] = times[f"masked {share}"]["median_ms"]
    shares[share]["shrunk_ms"] = times[share]["median_ms"]
    shares[share]["speedup"] = round(
      times["whole"]["median_ms"] / max(times[share]["median_ms"], 1e-3), 2
    )
  return found | {"ms": times["whole"]["median_ms"], "shares": shares}


def table(result):
  """The figures as Markdown."""
  lines = [
    "| model | groups | units kept | parameters | ms | masked, ms | times faster | difference |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
  ]
  for name, found in result["models"].items():
    lines.append(
      f"| {name} | {found['groups']} | 1 | {found['parameters']:,} | {found['ms']} | | | |"
    )
    for share, at in found["shares"].items():
      lines.append(
        f"| | | {share} | {at['parameters']:,} | {at['shrunk_ms']} | {at['masked_ms']} | "
        f"{at['speedup']} | {at['error']:.0e} |"
      )
  return "\n".join(lines)


def run(output, rounds):
  """Measures all models, prints and writes the figures."""
  result = {
    "command": f"python -m benchmarks.shrink_models --output={output}",
    "date": datetime.date.today().isoformat(),
    "made_with": made_with(),
    "models": {name: measure(make, rounds) for name, make in MODELS.items()},
  }
  path = pathlib.Path(output)
  path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  path.with_suffix(".md").write_text(table(result) + "\n", encoding="utf-8")
  print(table(result))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", default="benchmarks/results/shrink_models.json")
  parser.add_argument("--rounds", type=int, default=50)
  options = parser.parse_args()
  run(options.output, options.rounds)
