"""What a model costs, measured: parameters, bytes, multiply-accumulates, latency, throughput."""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from kdjax import tree
from kdjax.types import Params

ServeFn = Callable[[Params, Any], Any]  # (params, request) -> whatever is served.
MakeRequest = Callable[[int], Any]  # batch size -> a pytree of arrays with that many requests.


class Cost(NamedTuple):
  """What it takes to store and serve a model.

  Attributes:
    num_params: numbers in the params (scales of int8 weights included).
    num_nonzero: those that are not 0.
    num_bytes: bytes on disk of the file given, else bytes of the arrays in memory.
    macs: multiply-accumulates of one request, as XLA counts floating-point operations, over 2.
    latency_p50_ms: median time of one request alone, ms.
    latency_p99_ms: 99th percentile of the same, ms.
    throughput: requests per second in batches of `batch`.
  """

  num_params: int
  num_nonzero: int
  num_bytes: int
  macs: int
  latency_p50_ms: float
  latency_p99_ms: float
  throughput: float


class Candidate(NamedTuple):
  """A model to measure: see `measure`."""

  serve_fn: ServeFn
  params: Params
  make_request: MakeRequest
  path: str | pathlib.Path | None = None


def measure(
  serve_fn: ServeFn,
  params: Params,
  make_request: MakeRequest,
  *,
  path: str | pathlib.Path | None = None,
  batch: int = 256,
  num_requests: int = 200,
  num_batches: int = 20,
) -> Cost:
  """Measures one model; to compare several, `measure_many` shares the machine's noise fairly.

  Args:
    serve_fn: pure function `(params, request) -> outputs`; it is jitted here.
    params: pytree of arrays.
    make_request: `make_request(n)` gives a pytree of host arrays that holds n requests. The time
      of a call includes moving them to the device, and ends when the outputs are ready.
    path: the file, or folder, whose bytes count; None for the bytes of the arrays.
    batch: requests a call when throughput is measured.
    num_requests: timed calls of one request.
    num_batches: timed calls of one batch.

  Returns:
    `Cost`.

  Raises:
    ValueError: if the operations of `serve_fn` cannot be counted, see `count_macs`.
    FileNotFoundError: if `path` does not exist.

  Example:
    >>> import numpy as np
    >>> cost = measure(lambda w, x: x @ w, np.ones([8, 4], np.float32),
    ...                lambda n: np.ones([n, 8], np.float32), num_requests=5, num_batches=2)
    >>> cost.num_params, cost.num_bytes, cost.macs, cost.latency_p50_ms > 0
    (32, 128, 32, True)
  """
  candidate = Candidate(serve_fn, params, make_request, path)
  return measure_many(
    {"model": candidate}, batch=batch, num_requests=num_requests, num_batches=num_batches
  )["model"]


def measure_many(
  candidates: Mapping[str, Candidate],
  *,
  batch: int = 256,
  num_requests: int = 200,
  num_batches: int = 20,
  burst: int = 8,
) -> dict[str, Cost]:
  """Measures several models side by side on one machine.

  The models take turns in short bursts, in a new order every round, so that a noisy neighbour or
  a change of clock hits all alike. The first call of a burst finds the caches full of another
  model and is not timed. Throughput is `batch` over the median time of a batch.

  Args:
    candidates: models by name.
    batch: requests a call when throughput is measured.
    num_requests: timed calls of one request, each model.
    num_batches: timed calls of one batch, each model.
    burst: timed calls a turn.

  Returns:
    `Cost` by name.

  Raises:
    ValueError: if operations cannot be counted, or an option is not positive.
    FileNotFoundError: if a path does not exist.

  Example:
    >>> import numpy as np
    >>> request = lambda n: np.ones([n, 8], np.float32)
    >>> serve = lambda w, x: x @ w
    >>> costs = measure_many({"wide": Candidate(serve, np.ones([8, 64], np.float32), request),
    ...                       "slim": Candidate(serve, np.ones([8, 4], np.float32), request)},
    ...                      num_requests=5, num_batches=2)
    >>> {name: cost.macs for name, cost in costs.items()}
    {'wide': 512, 'slim': 32}
  """
  for name, value in dict(batch=batch, requests=num_requests, batches=num_batches).items():
    if value < 1:
      raise ValueError(f"{name} must be positive, got {value}")
  singles, batches = {}, {}
  for name, candidate in candidates.items():
    params = jax.device_put(candidate.params)
    singles[name] = _caller(candidate.serve_fn, params, candidate.make_request(1))
    batches[name] = _caller(candidate.serve_fn, params, candidate.make_request(batch))
  latency = time_calls(singles, num_calls=num_requests, burst=burst)
  batch_time = time_calls(batches, num_calls=num_batches, burst=burst)
  return {
    name: Cost(
      num_params=tree.count_params(candidate.params),
      num_nonzero=tree.count_nonzero(candidate.params),
      num_bytes=(
        tree.count_bytes(candidate.params) if candidate.path is None else disk_bytes(candidate.path)
      ),
      macs=count_macs(candidate.serve_fn, candidate.params, candidate.make_request(1)),
      latency_p50_ms=float(np.percentile(latency[name], 50) * 1e3),
      latency_p99_ms=float(np.percentile(latency[name], 99) * 1e3),
      throughput=float(batch / np.median(batch_time[name])),
    )
    for name, candidate in candidates.items()
  }


def time_calls(
  calls: Mapping[str, Callable[[], Any]], *, num_calls: int, burst: int = 8
) -> dict[str, np.ndarray]:
  """Times functions in turns: `burst` calls each, after one that is not timed.

  Args:
    calls: functions of no argument that return arrays; each call is waited for.
    num_calls: timed calls of each.
    burst: timed calls a turn.

  Returns:
    float64 `[num_calls]` by name, seconds.

  Raises:
    ValueError: if burst is not positive.

  Example:
    >>> {name: len(times) for name, times in time_calls({"a": lambda: 1}, num_calls=3).items()}
    {'a': 3}
  """
  if burst < 1:
    raise ValueError(f"burst must be positive, got {burst}")
  for call in calls.values():
    jax.block_until_ready(call())  # Compiles.
  rng = np.random.default_rng(0)
  times: dict[str, list[float]] = {name: [] for name in calls}
  for start in range(0, num_calls, burst):
    for name in rng.permutation(sorted(calls)):
      jax.block_until_ready(calls[name]())
      for _ in range(min(burst, num_calls - start)):
        begin = time.perf_counter()
        jax.block_until_ready(calls[name]())
        times[name].append(time.perf_counter() - begin)
  return {name: np.array(values) for name, values in times.items()}


def disk_bytes(path: str | pathlib.Path) -> int:
  """Bytes of a file, or of all files under a folder.

  Raises:
    FileNotFoundError: if there is neither.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"no file or folder at {path}")
  files = path.rglob("*") if path.is_dir() else [path]
  return sum(file.stat().st_size for file in files if file.is_file())


def count_macs(fn: Callable[..., Any], *args: Any) -> int:
  """Multiply-accumulates of `fn(*args)`: half the operations that XLA counts.

  A product of `[M, K]` and `[K, N]` counts M K N, in float32 and in int8 alike; an elementwise
  operation counts one half an element. XLA's analysis of the program *before* optimisation is
  read, because optimisation hides products in calls to libraries. XLA counts the body of a loop
  once; here a `scan` (or a `fori_loop` of fixed length) counts every step.

  Args:
    fn: a function that can be jitted.
    *args: pytrees of arrays or `jax.ShapeDtypeStruct`.

  Returns:
    int, multiply-accumulates.

  Raises:
    ValueError: if fn contains a loop of unknown length, or a kernel that XLA cannot see into.

  Example:
    >>> import jax.numpy as jnp
    >>> count_macs(lambda x, w: x @ w, jnp.ones([2, 8]), jnp.ones([8, 4]))
    64
  """
  return round(_flops(jax.make_jaxpr(fn)(*args)) / 2)


def _caller(serve_fn: ServeFn, params: Params, request: Any) -> Callable[[], Any]:
  serve = jax.jit(serve_fn)
  return lambda: serve(params, request)


def _flops(closed: Any) -> float:
  """Operations of a closed jaxpr, every step of every scan counted."""
  run = jax.jit(core.jaxpr_as_fun(closed))
  shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals]
  analysis = run.lower(*shapes).cost_analysis()
  if analysis is None:
    raise ValueError(f"XLA gives no cost analysis on {jax.default_backend()}")
  return float(analysis.get("flops", 0.0)) + _uncounted(closed.jaxpr)


def _uncounted(jaxpr: Any) -> float:
  """Operations of the steps of loops that XLA left out."""
  total = 0.0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name in ("while", "pallas_call", "ffi_call", "custom_call", "pure_callback"):
      raise ValueError(
        f"cannot count the operations of `{name}`: its work is unknown before it runs; serve "
        "with scan, or count by hand"
      )
    if name == "scan":
      body, length, unroll = (eqn.params[key] for key in ("jaxpr", "length", "unroll"))
      loops, rest = divmod(length, unroll)
      counted = rest + (unroll if loops else 0)  # Copies of the body in the program.
      once = _flops(body)
      total += length * once - counted * (once - _uncounted(body.jaxpr))
    elif name == "cond":
      total += max(_uncounted(branch.jaxpr) for branch in eqn.params["branches"])
    else:
      total += sum(_uncounted(sub) for sub in core.jaxprs_in_params(eqn.params))
  return total
