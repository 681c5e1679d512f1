"""Losses over a large vocabulary on a GPU, against Liger-Kernel and Apple's cut_cross_entropy.

python -m benchmarks.gpu_losses

Cross-entropy, forward KL and Jensen-Shannon of a student of 4,096 hidden units and a teacher of as
many on [8192 tokens, 128256 items], bfloat16: loss and gradients of hidden states and table.
`lean` is ours, 2,048 items a block. First every variant is compared with dense float32 on 256 of
the tokens; then all are timed in turn. Where there is no GPU, the script says so and ends well;
peers not installed (`torch`, `liger-kernel`, `cut-cross-entropy`) are named as missing. Nothing is
known of a GPU before it ran.
"""

import argparse
import datetime
import functools
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

# PyTorch must find room beside JAX on one device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.catalog_loss import made_with, timed
from kdjax import losses
from kdjax.types import FactoredLogits

LEAN = 2048  # Items in a block of the variant that needs least memory.
CHECKED = 256  # Tokens that are compared.
CLOSE = 0.03  # Largest relative error that bfloat16 may make: of the loss, of a gradient's norm.

Found = tuple[Any, Any, Any]  # Loss, gradients of hidden states and table.
PEERS = {
  "liger": ("torch", "liger_kernel"),
  "cut_cross_entropy": ("torch", "cut_cross_entropy"),
}


def inputs(tokens: int, hidden: int, items: int, dtype=jnp.bfloat16) -> dict[str, jax.Array]:
  """Hidden states and tables of student and teacher, and labels; seeded."""
  keys = jax.random.split(jax.random.key(0), 5)
  scale = hidden**-0.5
  return {
    "query": jax.random.normal(keys[0], (tokens, hidden), dtype),
    "table": jax.random.normal(keys[1], (items, hidden), dtype) * jnp.asarray(scale, dtype),
    "teacher": jax.random.normal(keys[2], (tokens, hidden), dtype),
    "teacher_table": jax.random.normal(keys[3], (items, hidden), dtype) * jnp.asarray(scale, dtype),
    "labels": jax.random.randint(keys[4], (tokens,), 0, items),
  }


def ours(
  case: str, student: FactoredLogits, args: dict[str, jax.Array], block: int | None = None
) -> jax.Array:
  """The library's loss in blocks."""
  teacher = FactoredLogits(args["teacher"], args["teacher_table"])
  if case == "cross_entropy":
    return losses.catalog_cross_entropy_loss(student, args["labels"], block=block)
  if case == "kl":
    return losses.catalog_kl_loss(student, teacher, block=block)
  return losses.catalog_jensen_shannon_loss(student, teacher, block=block)


def dense(case: str, student: FactoredLogits, args: dict[str, jax.Array]) -> jax.Array:
  """The same of all logits, in float32."""
  whole = lambda q, t: q.astype(jnp.float32) @ t.astype(jnp.float32).T  # noqa: E731
  logits = whole(student.query, student.table)
  if case == "cross_entropy":
    return losses.cross_entropy_loss(logits, args["labels"])
  loss = losses.kl_loss if case == "kl" else losses.jensen_shannon_loss
  return loss(logits, whole(args["teacher"], args["teacher_table"]))


def jax_call(loss: Callable[..., jax.Array], case: str, args) -> Callable[[], Found]:
  """A compiled step of loss and gradients."""

  def step(query, table, rest):
    return loss(case, FactoredLogits(query, table), rest)

  rest = {name: x for name, x in args.items() if name not in ("query", "table")}
  grad = jax.jit(jax.value_and_grad(step, (0, 1)))
  compiled = grad.lower(args["query"], args["table"], rest).compile()

  def call():
    value, grads = jax.block_until_ready(compiled(args["query"], args["table"], rest))
    return value, *grads

  return call


def torch_call(name: str, case: str, args, device: str) -> Callable[[], Found] | None:
  """A peer's, or None where it has no such loss."""
  if name == "cut_cross_entropy" and case != "cross_entropy":
    return None
  import torch

  as_torch = lambda x: torch.tensor(np.asarray(x.astype(jnp.float32))).to(device, torch.bfloat16)  # noqa: E731
  query, table = (as_torch(args[key]).requires_grad_() for key in ("query", "table"))
  labels = torch.tensor(np.asarray(args["labels"])).long().to(device)
  if name == "cut_cross_entropy":
    from cut_cross_entropy import linear_cross_entropy

    loss = lambda: linear_cross_entropy(query, table, labels)  # noqa: E731
  elif case == "cross_entropy":
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    fused = LigerFusedLinearCrossEntropyLoss()
    loss = lambda: fused(table, query, labels)  # noqa: E731
  else:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    beta = 0.0 if case == "kl" else 0.5
    fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta)
    teacher, teacher_table = as_torch(args["teacher"]), as_torch(args["teacher_table"])
    loss = lambda: fused(query, table, teacher, teacher_table, labels)  # noqa: E731

  def call():
    query.grad = table.grad = None
    value = loss()
    value.backward()
    torch.cuda.synchronize()
    return value, query.grad, table.grad

  return call


def errors(found: Found, expected: Found) -> dict[str, float]:
  """Relative errors of the loss and of the gradients, in their norms."""
  result = {}
  for name, a, e in zip(("loss", "query", "table"), found, expected, strict=True):
    a, e = (as_numpy(x) for x in (a, e))
    result[name] = float(np.linalg.norm(a - e) / np.linalg.norm(e))
  return result


def as_numpy(x: Any) -> np.ndarray:
  """In float64, from either framework."""
  if hasattr(x, "detach"):
    x = x.detach().float().cpu().numpy()
  return np.asarray(x, np.float64)


def compare(
  makers: dict[str, Callable[..., Callable[[], Found] | None]], case: str, sizes, rounds: int
) -> dict[str, Any]:
  """One loss: every variant against dense float32 on a few tokens, then the time of all.

  Args:
    makers: name -> `(case, args) -> call`, or None where there is no such loss.
    case: cross_entropy, kl or jensen_shannon.
    sizes: tokens, hidden units, items.
    rounds: of timing.

  Raises:
    RuntimeError: if a variant is wrong.
  """
  few = inputs(min(CHECKED, sizes[0]), *sizes[1:])
  expected = jax_call(dense, case, few)()
  found: dict[str, Any] = {}
  for name, make in makers.items():
    call = make(case, few)
    if call is None:
      continue
    found[name] = {"errors": errors(call(), expected)}
    worst = max(found[name]["errors"].values())
    if not worst <= CLOSE:
      raise RuntimeError(f"{name} is wrong by {worst:.3f} in {case}: {found[name]['errors']}")
  args = inputs(*sizes)
  calls = {name: makers[name](case, args) for name in found}
  for call in calls.values():
    call()
  times = timed(calls, rounds)
  for name in found:
    found[name] |= times[name]
    found[name]["times_ours"] = round(times[name]["median_ms"] / times["kdjax"]["median_ms"], 3)
  return found


def table_of(result: dict[str, Any]) -> str:
  """The figures as Markdown."""
  lines = ["| loss | variant | ms | times ours | largest error |", "|---|---|---:|---:|---:|"]
  for case, variants in result["cases"].items():
    for name, v in variants.items():
      worst = max(v["errors"].values())
      lines.append(
        f"| {case} | {name} | {v['median_ms']:.1f} | {v['times_ours']:.2f} | {worst:.0e} |"
      )
  lines += [f"\nMissing: {name}." for name in result["missing"]]
  return "\n".join(lines)


def race(sizes: tuple[int, int, int], rounds: int, device: str | None) -> dict[str, Any]:
  """All losses; with `device` "cuda" the peers too, with None ours alone."""
  missing = [
    name for name, modules in PEERS.items()
    if device is None or any(importlib.util.find_spec(m) is None for m in modules)
  ]  # fmt: skip
  lean = functools.partial(ours, block=LEAN)
  makers = {
    name: functools.partial(jax_call, loss) for name, loss in (("kdjax", ours), ("lean", lean))
  }
  for name in PEERS:
    if name not in missing:
      makers[name] = functools.partial(torch_call, name, device=device)
  cases = ("cross_entropy", "kl", "jensen_shannon")
  return {
    "command": "python -m benchmarks.gpu_losses " + " ".join(sys.argv[1:]),
    "date": datetime.date.today().isoformat(),
    "made_with": made_with(),
    "seed": 0,
    "tokens_hidden_items": list(sizes),
    "rounds": rounds,
    "missing": missing,
    "cases": {case: compare(makers, case, sizes, rounds) for case in cases},
  }


def main(output: str, sizes: tuple[int, int, int], rounds: int) -> None:
  """Races where there is a GPU, and says so where there is none."""
  if jax.default_backend() != "gpu":
    print(f"No GPU: JAX runs on {jax.default_backend()}. Nothing was measured.")
    return
  result = race(sizes, rounds, "cuda")
  path = pathlib.Path(output)
  path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
  path.with_suffix(".md").write_text(table_of(result) + "\n", encoding="utf-8")
  print(table_of(result))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", default="benchmarks/results/gpu_losses")
  parser.add_argument("--tokens", type=int, default=8192)
  parser.add_argument("--hidden", type=int, default=4096)
  parser.add_argument("--items", type=int, default=128256)
  parser.add_argument("--rounds", type=int, default=20)
  options = parser.parse_args()
  main(options.output, (options.tokens, options.hidden, options.items), options.rounds)
