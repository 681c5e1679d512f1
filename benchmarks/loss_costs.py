"""Time and memory of every loss against its textbook version (`benchmarks.textbook`).

  python -m benchmarks.loss_costs --output=benchmarks/results/loss_costs.json

Value and gradient on [4096, 1000] float32, or what fits, compiled. The two versions are timed in
turn. Memory is what XLA reports as temporary of the compiled program; it reads no clock.
"""

import argparse
import datetime
import json
import pathlib
import sys

import jax
import numpy as np

from benchmarks.catalog_loss import made_with, timed
from benchmarks.textbook import RACES
from kdjax import losses


def measure(name: str, rounds: int) -> dict[str, float]:
  """One loss, both ways."""
  race = RACES[name]
  args = race.inputs(jax.random.key(0))
  variants = {
    "textbook": race.textbook,
    "kdjax": race.ours or getattr(losses, f"{name}_loss"),
  }
  compiled = {
    variant: jax.jit(jax.value_and_grad(fn)).lower(*args).compile()
    for variant, fn in variants.items()
  }
  results = {variant: fn(*args) for variant, fn in compiled.items()}
  calls = {variant: (lambda fn=fn: fn(*args)) for variant, fn in compiled.items()}
  times = timed(calls, rounds)
  found: dict[str, float] = {}
  for variant, fn in compiled.items():
    found[f"{variant}_ms"] = times[variant]["median_ms"]
    found[f"{variant}_temporary_mb"] = round(fn.memory_analysis().temp_size_in_bytes / 1e6, 1)
    found[f"{variant}_loss"] = float(results[variant][0])
  gradients = [np.asarray(result[1]) for result in results.values()]
  scale = float(np.max(np.abs(gradients[0])))
  found["gradient_error"] = float(f"{np.max(np.abs(gradients[0] - gradients[1])) / scale:.1e}")
  found["speedup"] = round(found["textbook_ms"] / found["kdjax_ms"], 2)
  return found


def table(result: dict) -> str:
  """The figures as Markdown."""
  lines = ["| loss | ms | textbook | temporary MB | textbook |", "|---|---:|---:|---:|---:|"]
  for name, found in result["losses"].items():
    lines.append(
      f"| `{name}_loss` | {found['kdjax_ms']:.1f} | {found['textbook_ms']:.1f} | "
      f"{found['kdjax_temporary_mb']:.0f} | {found['textbook_temporary_mb']:.0f} |"
    )
  return "\n".join(lines)


def run(output: str, rounds: int, only: list[str]) -> dict:
  """Measures the losses, prints and writes the figures; others stay as the file has them."""
  path = pathlib.Path(output)
  before = json.loads(path.read_text(encoding="utf-8")) if only else {}
  result = {
    "command": before.get("command", "python -m benchmarks.loss_costs " + " ".join(sys.argv[1:])),
    "date": datetime.date.today().isoformat(),
    "made_with": made_with(),
    "rounds": rounds,
    "losses": before.get("losses", {}),
  }
  for name in only or RACES:
    found = result["losses"][name] = measure(name, rounds)
    print(name, json.dumps(found), flush=True)
  path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
  path.with_suffix(".md").write_text(table(result) + "\n", encoding="utf-8")
  return result


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", default="benchmarks/results/loss_costs.json")
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--only", nargs="*", default=[], choices=RACES, help="measure these again")
  options = parser.parse_args()
  run(options.output, options.rounds, options.only)
