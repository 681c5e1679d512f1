"""One pure step, and everything that runs it: runners, loop, checkpoints, writers."""

from kdjax.train.balance import Balance, by_uncertainty, init_balance
from kdjax.train.checkpoint import CheckpointError, Checkpoints, open_checkpoints
from kdjax.train.frozen import freeze
from kdjax.train.lazy import LazyAdamState, catch_up, lazy_adamw
from kdjax.train.loop import Feed, Interrupted, NonFiniteError, Progress, fit
from kdjax.train.objective import Objective, Term, make_objective, student_params
from kdjax.train.on_policy import make_sampler
from kdjax.train.parallel import jit_runner, pmap_runner
from kdjax.train.placement import (
  MODEL_RULES,
  leaf_sharding,
  make_mesh,
  on_mesh,
  put,
  shardings,
)
from kdjax.train.state import TrainState, init_state
from kdjax.train.step import make_train_step
from kdjax.train.writers import (
  join,
  jsonl_writer,
  read_jsonl,
  tensorboard_writer,
  wandb_writer,
)

__all__ = [
  "MODEL_RULES",
  "Balance",
  "CheckpointError",
  "Checkpoints",
  "Feed",
  "Interrupted",
  "LazyAdamState",
  "NonFiniteError",
  "Objective",
  "Progress",
  "Term",
  "TrainState",
  "by_uncertainty",
  "catch_up",
  "fit",
  "freeze",
  "init_balance",
  "init_state",
  "jit_runner",
  "join",
  "jsonl_writer",
  "lazy_adamw",
  "leaf_sharding",
  "make_mesh",
  "make_objective",
  "make_sampler",
  "make_train_step",
  "on_mesh",
  "open_checkpoints",
  "pmap_runner",
  "put",
  "read_jsonl",
  "shardings",
  "student_params",
  "tensorboard_writer",
  "wandb_writer",
]
