"""Losses whose gradients come out of the sweep that computes them, or out of a second one."""

import functools

import jax
import jax.numpy as jnp

from kdjax.losses.sweep import Blocks, Gradients, Losses, Mix, Target, sweep
from kdjax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_loss(blocks: Blocks, query, table, bias, target: Target, mix: Mix, weight):
  """Sum of `weight * loss` over tokens, and of each of its parts; gradients in the same sweep.

  The parts are for the log: no gradient flows through them.
  """
  losses, _ = sweep(blocks, query, table, bias, target, mix, weight, with_grads=False)
  return _weigh(losses, mix, weight)


def _weighted_forward(blocks, query, table, bias, target, mix, weight):
  losses, grads = sweep(blocks, query, table, bias, target, mix, weight, with_grads=True)
  return _weigh(losses, mix, weight), _like(grads, query, table, bias)


def _weighted_backward(blocks, grads, cotangents):
  del blocks
  scaled = jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), grads)
  return (*scaled, None, None, None)


weighted_loss.defvjp(_weighted_forward, _weighted_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def each_loss(blocks: Blocks, query, table, bias, target: Target, mix: Mix):
  """The loss of each token and its parts, for weights that are known only on the way back."""
  weight = jnp.ones(query.shape[:1], jnp.float32)
  losses, _ = sweep(blocks, query, table, bias, target, mix, weight, with_grads=False)
  return _mixed(losses, mix), losses


def _each_forward(blocks, query, table, bias, target, mix):
  return each_loss(blocks, query, table, bias, target, mix), (query, table, bias, target, mix)


def _each_backward(blocks, saved, cotangents):
  query, table, bias, target, mix = saved
  _, grads = sweep(blocks, query, table, bias, target, mix, cotangents[0], with_grads=True)
  return (*_like(grads, query, table, bias), None, None)


each_loss.defvjp(_each_forward, _each_backward)


def _mixed(losses: Losses, mix: Mix) -> Array:
  parts = [
    share * x for share, x in zip((mix.label, mix.teacher), losses, strict=True) if x is not None
  ]
  return functools.reduce(jnp.add, parts)


def _weigh(losses: Losses, mix: Mix, weight) -> tuple[Array, Losses]:
  total = lambda x: jnp.sum(jnp.where(weight == 0, 0.0, x * weight))  # noqa: E731
  return total(_mixed(losses, mix)), jax.tree.map(total, losses)


def _like(grads: Gradients, *inputs) -> Gradients:
  """In the dtypes of the inputs, as cotangents must be."""
  return jax.tree.map(lambda g, x: g.astype(x.dtype), grads, Gradients(*inputs))
