"""Flax NNX: a small network learns a larger one's logits, and its hidden layer by a projector."""

import jax
import optax
from flax import nnx

from kdjax import losses


class Net(nnx.Module):
  def __init__(self, width: int, key: int):
    rngs = nnx.Rngs(key)
    self.first, self.last = nnx.Linear(16, width, rngs=rngs), nnx.Linear(width, 10, rngs=rngs)

  def __call__(self, x):
    hidden = nnx.relu(self.first(x))
    return self.last(hidden), hidden


def run(steps: int = 200) -> list[float]:
  """Trains, and returns the loss of every step."""
  x = jax.random.normal(jax.random.key(0), (256, 16))
  teacher_logits, teacher_hidden = Net(64, 1)(x)
  graph, student = nnx.split(Net(8, 2))
  projector, tx = losses.projector(8, 64), optax.adam(0.01)
  params = (student, projector.init(jax.random.key(3)))

  def loss_fn(params):
    logits, hidden = nnx.merge(graph, params[0])(x)
    hint = losses.hint_loss(projector.apply(params[1], hidden), teacher_hidden)
    return losses.kl_loss(logits, teacher_logits) + hint

  def step(carry, _):
    loss, grads = jax.value_and_grad(loss_fn)(carry[0])
    updates, state = tx.update(grads, carry[1])
    return (optax.apply_updates(carry[0], updates), state), loss

  return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1].tolist()
