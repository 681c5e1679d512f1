"""Quantizes a trained model to int8 or int4 weights; its products are int8 by int8 from then on.

python -m experiments.quantize --workdir=runs/int8 --model_dir=runs/student
python -m experiments.quantize --workdir=runs/int4 --model_dir=runs/student --bits=4 --group=16
"""

import dataclasses
import pathlib
from typing import Any, Literal

from experiments import cli, runs
from kdjax import quant
from kdjax.flags import option


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
  source = runs.load_model(config.model_dir, flag="--model_dir")
  params = quant.quantize_params(
    source.params,
    select=runs.serves_integers,
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
    training={},
  )


if __name__ == "__main__":
  cli.main(Config, run, None)
