"""Flax NNX: a small network learns a larger one's logits, and its hidden layer by a projector."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from kdjax import losses


class Net(nnx.Module):
  """Two layers; returns logits and the hidden layer."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    self.first, self.last = nnx.Linear(16, width, rngs=rngs), nnx.Linear(width, 10, rngs=rngs)

  def __call__(self, x):
    hidden = nnx.relu(self.first(x))
    return self.last(hidden), hidden


def run(steps: int = 200) -> list[float]:
  """Trains, and returns the loss of every step."""
  x = jax.random.normal(jax.random.key(0), (256, 16))
  teacher_logits, teacher_hidden = Net(64, nnx.Rngs(1))(x)
  graph, student = nnx.split(Net(8, nnx.Rngs(2)))
  projector = losses.projector(8, 64)
  params, tx = (student, projector.init(jax.random.key(3))), optax.adam(0.01)

  def loss_fn(params):
    logits, hidden = nnx.merge(graph, params[0])(x)
    hint = losses.hint_loss(projector.apply(params[1], hidden), teacher_hidden)
    return losses.kl_loss(logits, teacher_logits) + hint

  @jax.jit
  def step(params, state):
    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state, loss

  state, history = tx.init(params), jnp.zeros([0])
  for _ in range(steps):
    params, state, loss = step(params, state)
    history = jnp.append(history, loss)
  return history.tolist()


if __name__ == "__main__":
  print(run()[::20])
