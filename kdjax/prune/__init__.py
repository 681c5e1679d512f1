"""Pruning: scores, schedules, masks, and the optax transform that applies them."""

from kdjax.prune.activations import sparse_gpt, wanda
from kdjax.prune.criteria import fisher, magnitude, movement, random, saliency
from kdjax.prune.distributions import erdos_renyi_kernel, global_sparsity, uniform
from kdjax.prune.gates import (
  Multiplier,
  apply_gates,
  expected_parameters,
  group_lasso,
  init_gates,
  kept_units,
  multiplier,
  open_probabilities,
  sample_gates,
  toward_budget,
)
from kdjax.prune.graph import Shrunk, find_axes, resize, shrink
from kdjax.prune.masks import apply_masks, make_masks, measure_sparsity
from kdjax.prune.patterns import block, each_output, n_m, unstructured
from kdjax.prune.regrow import hold, regrow, straight_through_masks
from kdjax.prune.schedules import (
  Cubic,
  OneShot,
  Periodic,
  Schedule,
  cubic,
  one_shot,
  periodic,
)
from kdjax.prune.shrink import (
  Axis,
  Units,
  axis_scores,
  axis_sizes,
  choose,
  mask_axes,
  named_units,
  take_axes,
  take_layers,
)
from kdjax.prune.transform import PruneState, find_masks, prune

__all__ = [
  "Axis",
  "Cubic",
  "Multiplier",
  "OneShot",
  "Periodic",
  "PruneState",
  "Schedule",
  "Shrunk",
  "Units",
  "apply_gates",
  "apply_masks",
  "axis_scores",
  "axis_sizes",
  "block",
  "choose",
  "cubic",
  "each_output",
  "erdos_renyi_kernel",
  "expected_parameters",
  "find_axes",
  "find_masks",
  "fisher",
  "global_sparsity",
  "group_lasso",
  "hold",
  "init_gates",
  "kept_units",
  "magnitude",
  "make_masks",
  "mask_axes",
  "measure_sparsity",
  "movement",
  "multiplier",
  "n_m",
  "named_units",
  "one_shot",
  "open_probabilities",
  "periodic",
  "prune",
  "random",
  "regrow",
  "resize",
  "saliency",
  "sample_gates",
  "shrink",
  "sparse_gpt",
  "straight_through_masks",
  "take_axes",
  "take_layers",
  "toward_budget",
  "uniform",
  "unstructured",
  "wanda",
]
