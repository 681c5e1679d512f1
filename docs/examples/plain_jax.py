"""Plain JAX and optax: a linear student learns a teacher's softened logits and its order."""

import jax
import jax.numpy as jnp
import optax

from kdjax import losses


def run(steps: int = 200) -> list[float]:
  """Trains, and returns the loss of every step."""
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (256, 16))
  teacher_logits = jnp.tanh(x @ jax.random.normal(keys[1], (16, 32))) @ jnp.ones([32, 10]).cumsum(1)
  params = {"kernel": 0.1 * jax.random.normal(keys[2], (16, 10)), "bias": jnp.zeros([1, 10])}
  tx = optax.adam(0.03)

  def loss_fn(params):
    logits = x @ params["kernel"] + params["bias"]
    kl = losses.kl_loss(logits, teacher_logits, temperature=4.0)
    return kl + 0.1 * losses.listmle_loss(logits, teacher_logits, k=3)

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
