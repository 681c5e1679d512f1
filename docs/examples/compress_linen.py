"""Stock Linen: shrink a trained network, prune it 2:4, round it to int4 by what goes into it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kdjax import prune, quant
from kdjax.traced import observe_inputs
from kdjax.tree import count_bytes, count_params


def run(steps: int = 300) -> dict[str, tuple[float, int]]:
  """Loss and parameters (in the end bytes) after every stage."""
  x = jax.random.normal(jax.random.key(0), (512, 4)) @ jax.random.normal(jax.random.key(1), (4, 32))
  y = jnp.sin(x[:, :4])
  net = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(128), nn.relu, nn.Dense(4)])
  tx = optax.adam(3e-3)

  def train(apply_fn, params):
    loss_fn = jax.jit(lambda params: jnp.mean((apply_fn(params, x) - y) ** 2))
    state = tx.init(params)

    @jax.jit
    def step(params, state):
      updates, state = tx.update(jax.grad(loss_fn)(params), state)
      return optax.apply_updates(params, updates), state

    for _ in range(steps):
      params, state = step(params, state)
    return params, loss_fn

  params, loss_fn = train(net.apply, net.init(jax.random.key(2), x))
  found = {"whole": (float(loss_fn(params)), count_params(params))}
  small = prune.shrink(net.apply, params, x, keep=0.5)  # Any function: no module, no config.
  params, loss_fn = train(small.apply, small.params)
  found["shrunk"] = float(loss_fn(params)), count_params(params)
  seen = observe_inputs(small.apply, params, x)
  params, masks = prune.sparse_gpt(params, seen, groups=(2, 4))
  found["2:4"] = float(loss_fn(params)), sum(int(m.sum()) for m in jax.tree.leaves(masks))
  rounded = quant.gptq(params, observe_inputs(small.apply, params, x), bits=4)
  found["int4"] = float(loss_fn(rounded)), count_bytes(rounded)
  return found


if __name__ == "__main__":
  print(run())
