"""An int8 SASRec against its floats, and against onnxruntime's dynamic int8 of the same model.

  python -m benchmarks.int8_student

Weights are drawn, since only speed and size are looked at. The ONNX graph is what an exporter
would write (MatMul, LayerNormalization, Softmax, Gather, TopK), checked here to give the same
scores; its int8 is `onnxruntime.quantization.quantize_dynamic`. All take turns in one process. A
request is a full history, answered by the ten best items of the whole catalogue. `widened` is the
int8 model after `quant.widen_params` for as many requests as come in one call: the same file, with
floats in memory where they are faster.
"""

import functools
import importlib.metadata
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from absl import app, flags, logging
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.int8_dot import hardware
from benchmarks.recommenders import CONFIGS
from kdjax import cost, models, quant, serve, store

FLAGS = flags.FLAGS
K = 10
# Items and longest history of the logs, with their students; and one where products are large.
SIZES: dict[str, dict[str, Any]] = {
  "movielens-1m student": dict(num_items=3416, max_length=200),
  "amazon-beauty student": dict(num_items=12_101, max_length=50),
  "200,000 items": dict(
    num_items=200_000, max_length=50, dim=64, num_layers=2, num_heads=1, mlp_dim=64
  ),
  "as wide as BERT": dict(
    num_items=12_101, max_length=50, dim=768, num_layers=4, num_heads=12, mlp_dim=3072
  ),
}
for _name in ("movielens-1m", "amazon-beauty"):
  _student = CONFIGS[_name].student
  SIZES[f"{_name} student"] |= dict(
    dim=_student.dim,
    num_layers=_student.layers,
    num_heads=_student.heads,
    mlp_dim=_student.mlp_dim,
  )


def onnx_sasrec(params: dict[str, Any], sizes: dict[str, Any]) -> onnx.ModelProto:
  """The graph of a SASRec on full histories: int32 `[N, L]` to the scores and ids of the best."""
  nodes: list[onnx.NodeProto] = []
  constants: list[onnx.TensorProto] = []
  length, heads = sizes["max_length"], sizes["num_heads"]
  head_dim = sizes["dim"] // heads

  def constant(value: Any) -> str:
    name = f"c{len(constants)}"
    constants.append(numpy_helper.from_array(np.asarray(value), name))
    return name

  def node(op: str, *inputs: str, outputs: tuple[str, ...] = (), **attributes: Any) -> str:
    outputs = outputs or (f"n{len(nodes)}",)
    nodes.append(helper.make_node(op, inputs, outputs, **attributes))
    return outputs[0]

  def dense(x: str, part: dict[str, Any]) -> str:
    return node("Add", node("MatMul", x, constant(part["kernel"])), constant(part["bias"]))

  def norm(x: str, part: dict[str, Any]) -> str:
    return node(
      "LayerNormalization", x, constant(part["scale"]), constant(part["bias"]), epsilon=1e-6
    )

  def split(x: str, order: list[int]) -> str:
    shape = constant(np.array([0, length, heads, head_dim], np.int64))
    return node("Transpose", node("Reshape", x, shape), perm=order)

  table = np.asarray(params["item_embedding"]["embedding"])
  x = node("Gather", constant(table), "items")
  x = node("Mul", x, constant(np.float32(sizes["dim"] ** 0.5)))
  x = node("Add", x, constant(params["position_embedding"]["embedding"]))
  mask = np.where(np.tri(length, dtype=bool), 0, np.finfo(np.float32).min).astype(np.float32)
  for i in range(sizes["num_layers"]):
    block = params[f"block_{i}"]
    parts, y = block["attention"], norm(x, block["norm_1"])
    query = split(dense(y, parts["query"]), [0, 2, 1, 3])
    key = split(dense(y, parts["key"]), [0, 2, 3, 1])
    value = split(dense(y, parts["value"]), [0, 2, 1, 3])
    scores = node("Mul", node("MatMul", query, key), constant(np.float32(head_dim**-0.5)))
    weights = node("Softmax", node("Add", scores, constant(mask)), axis=-1)
    y = node("Transpose", node("MatMul", weights, value), perm=[0, 2, 1, 3])
    y = node("Reshape", y, constant(np.array([0, length, heads * head_dim], np.int64)))
    x = node("Add", x, dense(y, parts["out"]))
    y = node("Relu", dense(norm(x, block["norm_2"]), block["up"]))
    x = node("Add", x, dense(y, block["down"]))
  last = node("Gather", norm(x, params["norm"]), constant(np.int64(length - 1)), axis=1)
  scores = node("MatMul", last, constant(np.ascontiguousarray(table.T)))
  node("TopK", scores, constant(np.array([K], np.int64)), outputs=("scores", "ids"))
  graph = helper.make_graph(
    nodes,
    "sasrec",
    [helper.make_tensor_value_info("items", TensorProto.INT32, ["N", length])],
    [
      helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", K]),
      helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", K]),
    ],
    constants,
  )
  return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compare(sizes: dict[str, Any], batch: int, seconds: float, folder: pathlib.Path):
  """Sizes, latency and throughput of every variant of one model."""
  model = models.make_sasrec(**sizes)
  length = sizes["max_length"]
  rng = np.random.default_rng(0)
  histories = rng.integers(0, sizes["num_items"], (batch, length)).astype(np.int32)
  params = model.init(jax.random.key(0), serve.request_batch(jnp.asarray(histories[:1])))
  recommend = jax.jit(serve.make_recommender(model.apply, k=K, exclude_seen=False))
  int8 = quant.quantize_params(params)
  calls: dict[str, Callable[[np.ndarray], Any]] = {
    "kdjax float32": functools.partial(recommend, params),
    "kdjax int8": functools.partial(recommend, int8),
    "kdjax int8, widened": lambda x: recommend(widened[len(x)], x),
  }
  widened = {count: quant.widen_params(int8, rows=count) for count in (1, batch)}
  nbytes = {}
  for name, tree in (("float32", params), ("int8", int8)):
    nbytes[f"kdjax {name}"] = store.save_params(folder / name, tree)
  nbytes["kdjax int8, widened"] = nbytes["kdjax int8"]

  files = {name: folder / f"{name}.onnx" for name in ("float32", "int8")}
  onnx.save(onnx_sasrec(jax.tree.map(np.asarray, params), sizes), files["float32"])
  quantize_dynamic(files["float32"], files["int8"], weight_type=QuantType.QInt8)
  for name, file in files.items():
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    calls[f"onnxruntime {name}"] = lambda x, session=session: session.run(None, {"items": x})
    nbytes[f"onnxruntime {name}"] = file.stat().st_size

  expected = np.asarray(recommend(params, histories[:4])[0])
  found = calls["onnxruntime float32"](histories[:4])[0]
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())

  singles = {name: functools.partial(call, histories[:1]) for name, call in calls.items()}
  batches = {name: functools.partial(call, histories) for name, call in calls.items()}
  latency, of_batch = timed(singles, seconds), timed(batches, seconds)
  return {
    name: {
      "bytes": nbytes[name],
      "p50_ms": round(1e3 * float(np.percentile(latency[name], 50)), 4),
      "p99_ms": round(1e3 * float(np.percentile(latency[name], 99)), 4),
      "requests_per_s": round(batch / float(np.median(of_batch[name])), 1),
    }
    for name in calls
  }


def timed(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, np.ndarray]:
  """As many calls as fill the time, at least 16 and at most 1,000."""
  once = cost.time_calls(calls, num_calls=3)
  total = sum(float(np.median(times)) for times in once.values())
  return cost.time_calls(calls, num_calls=int(np.clip(seconds / total, 16, 1000)))


def table(result: dict[str, Any]) -> str:
  """A row a variant, with its speed over the same model in float32 by XLA."""
  lines = [
    "| model | variant | MB | p50, ms | p99, ms | requests/s | latency, times faster "
    "| throughput, times higher |",
    "|---|---|---:|---:|---:|---:|---:|---:|",
  ]
  for name, rows in result["models"].items():
    base = rows["kdjax float32"]
    for variant, row in rows.items():
      faster = base["p50_ms"] / row["p50_ms"]
      higher = row["requests_per_s"] / base["requests_per_s"]
      lines.append(
        f"| {name} | {variant} | {row['bytes'] / 1e6:.3f} | {row['p50_ms']:.3f} "
        f"| {row['p99_ms']:.3f} | {row['requests_per_s']:,.0f} | {faster:.2f} | {higher:.2f} |"
      )
  return "\n".join(lines)


def main(argv):
  """Measures all models and keeps the results."""
  del argv
  logging.set_verbosity(logging.ERROR)
  found = {}
  for name, sizes in SIZES.items():
    with tempfile.TemporaryDirectory() as folder:
      found[name] = compare(sizes, FLAGS.batch, FLAGS.seconds, pathlib.Path(folder))
    print(table({"models": {name: found[name]}}), flush=True)
  result = {
    "command": f"python -m benchmarks.int8_student --batch={FLAGS.batch}",
    "hardware": hardware(),
    "versions": {
      name: importlib.metadata.version(name) for name in ("jax", "numpy", "onnx", "onnxruntime")
    },
    "sizes": SIZES,
    "models": found,
  }
  out = pathlib.Path(FLAGS.output)
  out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  out.with_suffix(".md").write_text(table(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
  flags.DEFINE_integer("batch", 64, "Requests a call when throughput is measured.")
  flags.DEFINE_float("seconds", 8.0, "For the latency of one model, and for its throughput.")
  flags.DEFINE_string("output", "benchmarks/results/int8_student", "Results, without their suffix.")
  app.run(main)
