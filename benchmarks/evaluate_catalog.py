"""Whole-catalogue evaluation of every user: in blocks, and one user at a time.

    python -m benchmarks.evaluate_catalog

Takes about a minute on 2 cores. Each user's last item is ranked among all items that the user has
not seen, with random factors of 64 dimensions (the time does not depend on their values), on real
logs where they lie beside the checkout and on random ones of the same size elsewhere.

The loop is what evaluation scripts commonly do: for each user a jitted score of the catalogue, its
seen items set to -inf on the host, and an argsort. It is timed on `LOOP_USERS` users and scaled to
all; both sides run in turns, after compiling, and must give the same ranks.
"""

import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "evaluate_catalog.json"
DIM, SEED, ROUNDS, LOOP_USERS = 64, 0, 5, 500
LOGS = {
  # name: (file, users, items, events): the sizes serve where the file is absent.
  "movielens-1m": ("movielens-1m/ml-1m.txt", 6040, 3416, 999_611),
  "amazon-video-games": ("amazon-video-games/interactions.txt", 31_013, 23_715, 287_107),
}

Lists = tuple[np.ndarray, np.ndarray]


def load(name: str) -> tuple[str, int, int, Lists, Lists]:
  """Source, users, items, seen lists and targets: the last event of users with 4 or more."""
  file, num_users, num_items, num_events = LOGS[name]
  path = ROOT.parent / "shared" / "data" / file
  if path.is_file():
    source = "real log"
    events = np.loadtxt(path, dtype=np.int64)
    events = events[np.argsort(events[:, 0], kind="stable")]
    users, items = (np.unique(column, return_inverse=True)[1] for column in events.T)
  else:
    source = "random log of the same size"
    rng = np.random.default_rng(SEED)
    users = np.sort(rng.integers(num_users, size=num_events))
    items = rng.integers(num_items, size=num_events)
  counts = np.bincount(users, minlength=num_users)
  held_out = np.zeros(len(items), bool)
  held_out[(np.cumsum(counts) - 1)[counts >= 4]] = True

  def lists(part: np.ndarray) -> Lists:
    sizes = np.bincount(users[part], minlength=num_users)
    return items[part].astype(np.int32), np.concatenate([[0], np.cumsum(sizes)])

  return source, num_users, num_items, lists(~held_out), lists(held_out)


@jax.jit
def score_user(query: jax.Array, table: jax.Array) -> jax.Array:
  """Scores of one user for the whole catalogue: float32 `[V]`."""
  return table @ query


@jax.jit
def argsort_down(scores: jax.Array) -> jax.Array:
  """Ids by falling score."""
  return jnp.argsort(-scores)


def loop_ranks(queries, table, seen: Lists, targets: Lists, users: np.ndarray) -> np.ndarray:
  """0-based rank of each user's target, one user at a time."""
  ranks = []
  for user in users:
    scores = np.array(score_user(queries[user], table))
    target = targets[0][targets[1][user]]
    removed = seen[0][seen[1][user] : seen[1][user + 1]]
    scores[removed[removed != target]] = -np.inf
    order = np.asarray(argsort_down(scores))
    ranks.append(int(np.flatnonzero(order == target)[0]))
  return np.array(ranks)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
  """Seconds, and what the call returned."""
  start = time.perf_counter()
  value = call()
  return time.perf_counter() - start, value


def compare(name: str) -> dict:
  """Times both on one log."""
  source, num_users, num_items, seen, targets = load(name)
  rng = np.random.default_rng(SEED)
  queries = jnp.asarray(rng.normal(size=(num_users, DIM)), jnp.float32)
  table = jnp.asarray(rng.normal(size=(num_items, DIM)), jnp.float32)
  with_target = np.flatnonzero(np.diff(targets[1]))
  subset = rng.choice(with_target, LOOP_USERS, replace=False)

  def blocked():
    return metrics.rank_targets(queries, table, *seen, *targets)

  def best():
    return metrics.top_k(queries, table, *seen, k=20)

  compile_seconds, ranks = timed(blocked)
  best()
  loop_ranks(queries, table, seen, targets, subset[:5])
  block_times, loop_times, top_times, summary_times = [], [], [], []
  for part in np.array_split(subset, ROUNDS):
    seconds, ranks = timed(blocked)
    block_times.append(seconds)
    seconds, one_by_one = timed(lambda part=part: loop_ranks(queries, table, seen, targets, part))
    loop_times.append(seconds / len(part) * len(with_target))
    top_times.append(timed(best)[0])
    summary_times.append(timed(lambda ranks=ranks: metrics.summarize(ranks))[0])
    rows = np.searchsorted(ranks.users, part)
    # Products of another shape round differently: neighbours may swap, in a handful of users.
    differ = np.abs(ranks.greater[rows] - one_by_one)
    if differ.max() > 1 or np.mean(differ > 0) > 0.02:
      raise AssertionError(f"{name}: the two evaluations disagree by up to {differ.max()} ranks")
  return {
    "source": source,
    "users": num_users,
    "users_ranked": len(with_target),
    "items": num_items,
    "seen": len(seen[0]),
    "blocks_first_call_seconds": round(compile_seconds, 3),
    "blocks_seconds": [round(x, 4) for x in block_times],
    "blocks_seconds_median": round(float(np.median(block_times)), 4),
    "summarize_seconds_median": round(float(np.median(summary_times)), 4),
    "top_20_seconds_median": round(float(np.median(top_times)), 4),
    "loop_users_timed": LOOP_USERS,
    "loop_seconds_scaled_to_all": [round(x, 2) for x in loop_times],
    "loop_seconds_median": round(float(np.median(loop_times)), 2),
    "times_faster": round(float(np.median(loop_times) / np.median(block_times)), 1),
  }


def main() -> None:
  """Runs both logs and writes the result file."""
  logs = {}
  for name in LOGS:
    logs[name] = compare(name)
    print(name, json.dumps(logs[name], indent=2), flush=True)
  result = {
    "command": "python -m benchmarks.evaluate_catalog",
    "what": "rank of each user's last item among all unseen items, float32, random factors",
    "dim": DIM,
    "seed": SEED,
    "rounds": ROUNDS,
    "hardware": {
      "cpus": os.cpu_count(),
      "processor": processor(),
      "backend": jax.default_backend(),
      "load_average_at_end": round(os.getloadavg()[0], 1),
    },
    "versions": {
      "python": sys.version.split()[0],
      "jax": jax.__version__,
      "numpy": np.__version__,
    },
    "logs": logs,
  }
  RESULT.parent.mkdir(parents=True, exist_ok=True)
  RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
  """The processor's name, where the system tells."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
  names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor()


if __name__ == "__main__":
  main()
