"""Quantizes a trained model to int8 weights; its products are int8 by int8 from then on.

python -m experiments.quantize --workdir=runs/int8 --model_dir=runs/student
"""

import dataclasses
import pathlib
from typing import Any, Literal

from experiments import cli, runs
from kdjax import quant
from kdjax.flags import option
from kdjax.tree import is_matrix


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.quantize."""

  model_dir: str = option("", "Workdir of the trained model.")
  seed: int = option(0, "Noted in the result; quantization itself draws nothing.")
  rest_dtype: Literal["float16", "float32"] = option(
    "float16", "Type of what stays in floating point: positions, biases, norms."
  )


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Quantizes, judges on the test part, and leaves the int8 model and `result.json`."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  source = runs.load_model(config.model_dir, flag="--model_dir")
  # Positions are few, and added to every embedding: int8 there saves little and costs most.
  params = quant.quantize_params(
    source.params,
    select=lambda path, leaf: is_matrix(path, leaf) and "position_embedding" not in path,
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
    training={},
  )


if __name__ == "__main__":
  cli.main(Config, run, None)
