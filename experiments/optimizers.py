"""The optimizer that the flags ask for."""

import optax

from experiments.config import FitConfig
from kdjax import tree
from kdjax.train import lazy
from kdjax.types import Params, Select


def make_tx(
  fit: FitConfig,
  num_steps: int,
  last: optax.GradientTransformation | None = None,
  tables: Select | None = None,
) -> optax.GradientTransformation:
  """Clipping, the optimizer with its schedule, and `last` (a pruning transform), in this order.

  With `tables` those are updated by rows (adam and adamw).
  """
  warmup = min(fit.warmup_steps, num_steps // 10)
  peak = fit.learning_rate
  if fit.schedule == "cosine":
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(num_steps, warmup + 1))
  else:
    rate = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  decay = {"weight_decay": fit.weight_decay, "mask": _matrices}
  rows = lambda: lazy.lazy_adamw(  # noqa: E731
    rate,
    tables=tables or (lambda path, leaf: False),
    weight_decay=fit.weight_decay if fit.optimizer == "adamw" else 0.0,
  )
  optimizer = {
    "adam": lambda: optax.adam(rate),
    "adamw": lambda: optax.adamw(rate, **decay),
    "adagrad": lambda: optax.adagrad(rate),
    "lion": lambda: optax.lion(rate, **decay),
    "sgd": lambda: optax.sgd(rate, momentum=0.9),
  }[fit.optimizer]()
  optimizer = optimizer if tables is None else rows()
  clip = [] if fit.clip_norm is None else [optax.clip_by_global_norm(fit.clip_norm)]
  return optax.chain(*clip, optimizer, *([] if last is None else [last]))


def _matrices(params: Params) -> Params:
  return tree.map_with_path(tree.is_matrix, params)
