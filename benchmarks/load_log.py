"""Loading 20 million interactions: seconds and peak memory, against pandas reading the same file.

  python -m benchmarks.load_log            # about two minutes; writes results/load_log.json

Peak memory is the whole process's (`getrusage`), interpreter and imports included; the target is
three times the columns. Every load runs in a fresh process, and this one stays small, because a
child's peak starts at its parent's.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

RESULTS = pathlib.Path(__file__).parent / "results" / "load_log.json"
FILES = {"csv": "ratings.csv", "parquet": "ratings.parquet", "sasrec": "pairs.txt"}


def main() -> None:
  """Writes the log, loads it in fresh processes, and saves the figures."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--rows", type=int, default=20_000_000, help="interactions in the log")
  parser.add_argument(
    "--repeats", type=int, default=3, help="loads of each file; the median counts"
  )
  parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.step:
    print(json.dumps(_STEPS[args.step[0]](args.step[1], args.rows)))
    return
  with tempfile.TemporaryDirectory() as folder:
    _child("write", folder, args.rows)
    rows = {}
    for name, file in FILES.items():
      path = os.path.join(folder, file)
      row = {"file_mb": os.path.getsize(path) / 1e6}
      for reader in ("kdjax", "pandas"):
        runs = [_child(reader, path, args.rows) for _ in range(args.repeats)]
        median = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
        peak = max(run["peak_mb"] for run in runs)
        row[reader] = median | {"peak_mb": peak, "peak_over_columns": peak / median["columns_mb"]}
      row["pandas_seconds_over_kdjax"] = row["pandas"]["seconds"] / row["kdjax"]["seconds"]
      rows[name] = row
      print(name, json.dumps(row))
  result = {
    "command": "python -m benchmarks.load_log " + " ".join(sys.argv[1:]),
    "rows": args.rows,
    "repeats": args.repeats,
    "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "cpu": _cpu()},
    "versions": {
      "python": platform.python_version(),
      **{name: importlib.metadata.version(name) for name in ("polars", "pandas", "numpy")},
    },
    "formats": rows,
  }
  RESULTS.parent.mkdir(exist_ok=True)
  RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def _child(step: str, path: str, rows: int) -> dict:
  command = [sys.executable, "-m", "benchmarks.load_log", f"--rows={rows}", "--step", step, path]
  return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _write(folder: str, rows: int) -> dict:
  import numpy as np
  import polars as pl

  rng = np.random.default_rng(0)
  log = pl.DataFrame({
    "userId": np.sort(rng.integers(1, 200_001, rows)),
    "movieId": (50_000 * rng.random(rows) ** 3).astype(np.int64) + 1,
    "rating": rng.integers(1, 11, rows) / 2,
    "timestamp": rng.integers(10**9, 17 * 10**8, rows),
  })  # fmt: skip
  log.write_csv(os.path.join(folder, FILES["csv"]))
  log.write_parquet(os.path.join(folder, FILES["parquet"]))
  pairs = log.select("userId", "movieId")
  pairs.write_csv(os.path.join(folder, FILES["sasrec"]), separator=" ", include_header=False)
  return {}


def _load_kdjax(path: str, rows: int) -> dict:
  from kdjax.data.sources import load

  start = time.perf_counter()
  log = load(path)
  seconds = time.perf_counter() - start
  assert log.events.height == rows, log.events.height
  return _measured(seconds, log.events.estimated_size())


def _load_pandas(path: str, rows: int) -> dict:
  import pandas as pd

  start = time.perf_counter()
  if path.endswith(".parquet"):
    frame = pd.read_parquet(path)
  elif path.endswith(".csv"):
    frame = pd.read_csv(path)
  else:
    frame = pd.read_csv(path, sep=" ", header=None, names=["user", "item"])
  seconds = time.perf_counter() - start
  assert len(frame) == rows, len(frame)
  return _measured(seconds, int(frame.memory_usage(index=False).sum()))


def _measured(seconds: float, columns: int) -> dict:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {"seconds": seconds, "columns_mb": columns / 1e6, "peak_mb": peak / 1e6}


def _cpu() -> str:
  lines = pathlib.Path("/proc/cpuinfo")
  names = (
    [x for x in lines.read_text().split("\n") if x.startswith("model name")]
    if lines.exists()
    else []
  )
  return names[0].split(":")[1].strip() if names else platform.processor()


_STEPS = {"write": _write, "kdjax": _load_kdjax, "pandas": _load_pandas}

if __name__ == "__main__":
  main()
