"""Time and memory of the losses against textbook versions, written as one would on a whiteboard.

  python -m benchmarks.loss_costs --output=benchmarks/results/loss_costs.json

Value and gradient by the student's [4096, 1000] float32 logits, compiled; losses over pairs get
[64, 1000], since a textbook's pairs of 4096 x 1000 do not fit. The two versions are timed in turn.
Memory is what XLA reports as temporary of the compiled program; it reads no clock.
"""

import argparse
import datetime
import json
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.catalog_loss import made_with, timed
from kdjax import losses

ROWS, PAIR_ROWS, CLASSES, T = 4096, 64, 1000, 2.0
log_softmax, softmax, sigmoid = jax.nn.log_softmax, jax.nn.softmax, jax.nn.sigmoid


def kl(p, q):
  """KL of rows of probabilities, as printed."""
  return jnp.mean(jnp.sum(p * (jnp.log(p) - jnp.log(q)), axis=-1))


def skewed(a, b, weight):
  """A mixture of probabilities."""
  return weight * a + (1 - weight) * b


def pearson(a, b):
  """Correlation along the last axis."""
  a, b = (x - jnp.mean(x, axis=-1, keepdims=True) for x in (a, b))
  return jnp.sum(a * b, -1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


def zscore(z):
  """Logits in units of their deviation."""
  return (z - jnp.mean(z, -1, keepdims=True)) / jnp.std(z, -1, keepdims=True)


def decoupled(s, t, y):
  """DKD by gathering the target's probability and masking it out."""
  target = jax.nn.one_hot(y, s.shape[-1])
  p, q = softmax(t), softmax(s)
  pt, qt = jnp.sum(p * target, -1), jnp.sum(q * target, -1)
  binary = pt * jnp.log(pt / qt) + (1 - pt) * jnp.log((1 - pt) / (1 - qt))
  log_p, log_q = log_softmax(t - 1000.0 * target), log_softmax(s - 1000.0 * target)
  return jnp.mean(binary + 8.0 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))


def listmle(s, t):
  """Sort by the teacher, then a softmax for each place: here by a cumulative sum."""
  s = jnp.take_along_axis(s, jnp.argsort(-t, axis=-1), axis=-1)
  rest = jnp.log(jnp.cumsum(jnp.exp(s)[:, ::-1], axis=-1)[:, ::-1])
  return jnp.mean(jnp.sum(rest - s, -1))


def pairs(x):
  """Differences of all pairs."""
  return x[:, :, None] - x[:, None, :]


def ranknet(s, t):
  """Cross-entropy of every ordered pair, the diagonal left out."""
  p, n = sigmoid(pairs(t)), s.shape[-1]
  z = pairs(s)
  each = -(p * jax.nn.log_sigmoid(z) + (1 - p) * jax.nn.log_sigmoid(-z))
  return jnp.mean(jnp.sum(each * (1 - jnp.eye(n)[None]), (1, 2)) / (n * (n - 1)))


def hinge(s, t):
  """Mean over the pairs that the teacher orders."""
  ordered = (pairs(t) > 0).astype(jnp.float32)
  return jnp.mean(jnp.sum(ordered * jax.nn.relu(1 - pairs(s)), (1, 2)) / jnp.sum(ordered, (1, 2)))


# Name -> the textbook's version of (student, teacher[, labels]), and options of ours.
TEXTBOOK: dict[str, tuple[Callable[..., jax.Array], dict[str, float]]] = {
  "kl": (lambda s, t: T**2 * kl(softmax(t / T), softmax(s / T)), {"temperature": T}),
  "reverse_kl": (lambda s, t: kl(softmax(s), softmax(t)), {}),
  "jensen_shannon": (
    lambda s, t: (
      kl(softmax(t), skewed(softmax(t), softmax(s), 0.5)) / 2
      + kl(softmax(s), skewed(softmax(t), softmax(s), 0.5)) / 2
    ),
    {},
  ),
  "skew_kl": (lambda s, t: kl(softmax(t), skewed(softmax(t), softmax(s), 0.1)), {}),
  "skew_reverse_kl": (lambda s, t: kl(softmax(s), skewed(softmax(s), softmax(t), 0.1)), {}),
  "total_variation": (lambda s, t: jnp.mean(jnp.sum(jnp.abs(softmax(s) - softmax(t)), -1)) / 2, {}),
  "logit_mse": (lambda s, t: jnp.mean((s - t) ** 2), {}),
  "standardized_kl": (
    lambda s, t: T**2 * kl(softmax(zscore(t) / T), softmax(zscore(s) / T)),
    {"temperature": T},
  ),
  "dist": (
    lambda s, t: (
      jnp.mean(1 - pearson(softmax(s), softmax(t)))
      + jnp.mean(1 - pearson(softmax(s).T, softmax(t).T))
    ),
    {},
  ),
  "decoupled": (decoupled, {"temperature": 1.0}),
  "listnet": (lambda s, t: -jnp.mean(jnp.sum(softmax(t) * log_softmax(s), -1)), {}),
  "listmle": (listmle, {}),
  "ranknet": (ranknet, {}),
  "pairwise_hinge": (hinge, {}),
}
PAIRWISE, LABELLED = ("ranknet", "pairwise_hinge"), ("decoupled",)


def measure(name: str, rounds: int) -> dict[str, float]:
  """One loss, both ways."""
  keys = jax.random.split(jax.random.key(0), 3)
  rows = PAIR_ROWS if name in PAIRWISE else ROWS
  args = [jax.random.normal(key, (rows, CLASSES)) for key in keys[:2]]
  if name in LABELLED:
    args.append(jax.random.randint(keys[2], (rows,), 0, CLASSES))
  textbook, options = TEXTBOOK[name]
  ours = getattr(losses, f"{name}_loss")
  variants = {"textbook": textbook, "kdjax": lambda *a: ours(*a, **options)}
  compiled = {
    variant: jax.jit(jax.value_and_grad(fn)).lower(*args).compile()
    for variant, fn in variants.items()
  }
  results = {variant: fn(*args) for variant, fn in compiled.items()}
  calls = {variant: (lambda fn=fn: fn(*args)) for variant, fn in compiled.items()}
  times = timed(calls, rounds)
  found = {"rows": rows}
  for variant, fn in compiled.items():
    found[f"{variant}_ms"] = times[variant]["median_ms"]
    found[f"{variant}_temporary_mb"] = round(fn.memory_analysis().temp_size_in_bytes / 1e6, 1)
    found[f"{variant}_loss"] = float(results[variant][0])
  gradients = [np.asarray(result[1]) for result in results.values()]
  scale = float(np.max(np.abs(gradients[0])))
  found["gradient_error"] = float(f"{np.max(np.abs(gradients[0] - gradients[1])) / scale:.1e}")
  found["speedup"] = round(found["textbook_ms"] / found["kdjax_ms"], 2)
  return found


def run(output: str, rounds: int) -> dict:
  """Measures every loss, prints and writes the figures."""
  result = {
    "command": "python -m benchmarks.loss_costs " + " ".join(sys.argv[1:]),
    "date": datetime.date.today().isoformat(),
    "made_with": made_with(),
    "rounds": rounds,
    "losses": {},
  }
  for name in TEXTBOOK:
    found = result["losses"][name] = measure(name, rounds)
    print(name, json.dumps(found), flush=True)
  pathlib.Path(output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
  return result


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", default="benchmarks/results/loss_costs.json")
  parser.add_argument("--rounds", type=int, default=9)
  options = parser.parse_args()
  run(options.output, options.rounds)
