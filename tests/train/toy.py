"""A two-layer classifier and its data: small enough that every test of training is quick."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import reduce, types
from kdjax.train import objective, parallel, state, step


def apply(params, batch, *, key=None):
  hidden = jnp.tanh(batch["x"] @ params["w"])
  if key is not None:
    hidden = jnp.where(jax.random.bernoulli(key, 0.9, hidden.shape), hidden / 0.9, 0.0)
  return types.Outputs(hidden @ params["v"], {"hidden": hidden})


def plain_apply(params, batch, *, key=None):
  del key
  return apply(params, batch)


def init(key):
  w, v = jax.random.split(key)
  return {"w": jax.random.normal(w, (6, 8)) * 0.5, "v": jax.random.normal(v, (8, 3)) * 0.5}


def label_loss(student, teacher, batch):
  del teacher
  log_probs = jax.nn.log_softmax(student.logits)
  loss = -jnp.take_along_axis(log_probs, batch["y"][:, None], axis=-1)[:, 0]
  return reduce.totals(loss, where=batch["valid"])


def match_loss(student, teacher, batch):
  return reduce.totals(jnp.mean((student.logits - teacher.logits) ** 2, -1), where=batch["mine"])


def rows(num=64, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "x": rng.normal(size=(num, 6)).astype(np.float32),
    "y": rng.integers(0, 3, num).astype(np.int32),
    # Unequal counts in every slice: a mean of means would show.
    "valid": rng.random(num) < 0.6,
    "mine": rng.random(num) < 0.3,
    "row": np.arange(num, dtype=np.int32),
  }


def recall_loss(memory, student, teacher, batch):
  del teacher
  loss = jnp.mean((student.logits - memory[batch["row"]]) ** 2, -1)
  return reduce.totals(loss, where=batch["mine"])


def recall_change(memory, student, teacher, batch):
  """Half of the way to what the two models say of the batch's own rows."""
  middle = (student.logits + teacher.logits) / 2
  own = batch["row"]
  return jnp.zeros_like(memory).at[own].set((middle - memory[own]) / 2)


RECALL = objective.Term(
  "recall",
  recall_loss,
  0.2,
  memory=objective.Memory(lambda key, s, t: jax.random.normal(key, (64, 3)), recall_change),
)


def make(student_apply=plain_apply, learning_rate=0.05, more=(), **step_options):
  terms = [objective.Term("label", label_loss, 0.7), objective.Term("match", match_loss, 0.3)]
  terms += more
  goal = objective.make_objective(student_apply, terms, teacher_apply=plain_apply)
  tx = optax.adam(learning_rate)
  teacher = init(jax.random.key(9))
  first = (jax.random.key(1), init(jax.random.key(0)), teacher, rows(4))
  start = state.init_state(goal.init(*first), tx, goal.init_memory(*first))
  make_step = functools.partial(step.make_train_step, goal, tx, **step_options)
  return start, teacher, make_step


def runner(student_apply=plain_apply, **step_options):
  start, teacher, make_step = make(student_apply, **step_options)
  return start, teacher, parallel.jit_runner(make_step())


def touched_whole(text, size):
  """What a compiled program does with an array of `size` rows, but to take rows or to put some."""
  # Name, shape, operation and operands of every instruction, those within fusions too.
  found = re.findall(r"%(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)", text)
  large = {name for name, shape, _, _ in found if re.match(rf"\w+\[{size}(,\d+)?\]", shape)}
  rows = {"gather", "scatter", "dynamic-slice", "dynamic-update-slice"}
  passed = {"parameter", "get-tuple-element", "tuple", "while", "fusion", "call", "bitcast"}
  made = {op for name, _, op, _ in found if name in large}
  read = {op for _, _, op, rest in found if large & set(re.findall(r"%([\w.\-]+)", rest))}
  return sorted((made | read) - rows - passed)
