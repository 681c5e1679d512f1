"""Equinox: student embeddings take over the distances between a teacher's."""

import equinox as eqx
import jax
import optax

from kdjax import losses


def run(steps: int = 200) -> list[float]:
  """Trains, and returns the loss of every step."""
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (64, 16))
  teacher = jax.vmap(eqx.nn.MLP(16, 32, 64, 2, key=keys[1]))(x)
  student = eqx.nn.MLP(16, 4, 8, 1, key=keys[2])
  params, static = eqx.partition(student, eqx.is_array)
  tx = optax.adam(0.01)

  def loss_fn(params):
    vectors = jax.vmap(eqx.combine(params, static))(x)
    return losses.rkd_distance_loss(vectors, teacher) + 2 * losses.rkd_angle_loss(vectors, teacher)

  @jax.jit
  def step(params, state):
    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state, loss

  state, history = tx.init(params), []
  for _ in range(steps):
    params, state, loss = step(params, state)
    history.append(float(loss))
  return history


if __name__ == "__main__":
  print(run()[::20])
