"""Quantizes a trained model to int8 or int4 weights; its products are int8 by int8 from then on.

python -m experiments.quantize --workdir=runs/int8 --model_dir=runs/student
python -m experiments.quantize --workdir=runs/int4 --model_dir=runs/student --bits=4 --group=16
python -m experiments.quantize --workdir=runs/mixed --model_dir=runs/student --mixed_mb=0.5
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments import cli, families, problems, runs, stored
from experiments.config import FitConfig
from kdjax import quant
from kdjax.flags import option
from kdjax.reduce import safe_divide
from kdjax.train.objective import make_objective
from kdjax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.quantize."""

  model_dir: str = option("", "Workdir of the trained model.")
  bits: int = option(8, "Of every weight: 8 or 4.")
  group: int = option(
    0, "Entries of a row that share a scale, 0 for all; with groups the products are float."
  )
  affine: bool = option(
    False, "Zero points, for ranges that are not symmetric. Pruned weights no longer save bytes."
  )
  mixed_mb: float | None = option(
    None,
    "Give every weight the precision (float16, int8 or int4) that loses least while all of them "
    "together take at most this many MB, instead of --bits; the loss on training rows decides.",
    lower=0,
  )
  seed: int = option(0, "Noted in the result; quantization itself draws nothing.")
  rest_dtype: Literal["float16", "float32"] = option(
    "float16", "Type of what stays in floating point: positions, biases, norms."
  )


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Quantizes, judges on the test part, and leaves the quantized model and `result.json`."""
  if config.bits not in (4, 8) or config.group < 0:
    raise ValueError(f"--bits={config.bits} must be 8 or 4, --group={config.group} not negative")
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  source = stored.load_model(config.model_dir, flag="--model_dir")
  params: Params = source.params
  training: dict[str, Any] = {}
  if config.mixed_mb is not None:
    params, training = _mixed(source, config)
  params = quant.quantize_params(
    params,
    select=lambda path, leaf: config.mixed_mb is None and families.serves_integers(path, leaf),
    bits=config.bits,
    group=config.group or None,
    affine=config.affine,
    rest_dtype=None if config.rest_dtype == "float32" else config.rest_dtype,
  )
  print(quant.format_quantized(quant.summarize_quantized(params)), flush=True)
  return runs.finish(
    "quantize",
    folder,
    source.family,
    source.sizes,
    params,
    source.data,
    seed=config.seed,
    training=training,
  )


def _mixed(source: stored.SavedModel, config: Config) -> tuple[Params, dict[str, Any]]:
  """Params with a precision for every weight, and which.

  Raises:
    ValueError: naming the flag, if even the smallest precisions take more.
  """
  found = quant.measure_sensitivity(
    _training_loss(source),
    jax.tree.map(jnp.asarray, source.params),
    precisions=("float16", "int8", "int4"),
    select=families.serves_integers,
    group=config.group or None,
  )
  assert config.mixed_mb is not None
  try:
    chosen = quant.choose_precisions(found, max_bytes=int(config.mixed_mb * 1e6))
  except ValueError as error:
    raise ValueError(f"--mixed_mb={config.mixed_mb:g}: {error}") from error
  mixed = quant.mixed_params(source.params, chosen, group=config.group or None)
  return mixed, {"precisions": chosen, "sensitivity": [one._asdict() for one in found]}


def _training_loss(source: stored.SavedModel, rows: int = 64) -> Callable[[Params], Array]:
  """The label loss on the first training rows, without dropout."""
  task = problems.make_task(source.data, source.family)
  fit, key = FitConfig(), jax.random.key(0)
  some = {name: jnp.asarray(values[:rows]) for name, values in task.arrays.items()}
  augment = task.augment(fit)
  batch = some if augment is None else augment(some, key)
  term = task.label_term(fit, 1.0)
  goal = make_objective(families.make_model(source.family, source.sizes).apply, [term])

  def loss_fn(params: Params) -> Array:
    means, _ = goal.means({"student": params, "helpers": {}}, None, batch, None, {})
    return safe_divide(means[term.name].total, means[term.name].count)

  return loss_fn


if __name__ == "__main__":
  cli.main(Config, run, None)
