"""Collectives of compiled programs, counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from kdjax.collectives import Collective, read_collectives

PROGRAM = """
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %one = f32[4]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
}
%condition (p: (s32[], f32[4])) -> pred[] {
  %lt = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (a: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]{0}) while(%t), condition=%condition, body=%body, TRIPS
  %two = (f32[8,2]{1,0}, /*index=1*/bf16[3]{0}) all-reduce(%y, %z), replica_groups=[2,4]<=[8]
  %three = f32[16]{0} all-gather(%q), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  %four = f32[2]{0} reduce-scatter(%r), replica_groups={{0,1,2,3}}, to_apply=%add
  %alone = f32[9]{0} all-reduce(%y), replica_groups={{0},{1}}, to_apply=%add
  %five = (f32[2]{0}, f32[8]{0}) all-gather-start(%s), replica_groups={{0,1,2,3}}, dimensions={0}
}
"""


def test_a_program_is_read():
  text = PROGRAM.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"5"}}')
  assert read_collectives(text) == [
    Collective("all-reduce", 2, 16, 5),
    Collective("all-reduce", 4, 8 * 2 * 4 + 3 * 2, 1),
    Collective("all-gather", 4, 64, 1),
    Collective("reduce-scatter", 4, 32, 1),
    Collective("all-gather", 4, 32, 1),
  ]


def test_a_loop_of_unknown_length_is_refused():
  with pytest.raises(ValueError, match="does not say how often all-reduce in body runs"):
    read_collectives(PROGRAM.replace("TRIPS", "metadata={}"))


def test_a_loop_that_counts_up_to_a_constant():
  text = PROGRAM.replace("TRIPS", "metadata={}")
  text = text.replace("  %lt =", "  %n = s32[]{:T(128)} constant(5)\n  %lt =")
  assert read_collectives(text)[0] == Collective("all-reduce", 2, 16, 5)
  with pytest.raises(ValueError, match="does not say how often"):
    read_collectives(text.replace("direction=LT", "direction=NE"))


def test_what_a_tpu_starts_and_awaits_counts_once():
  gather = "  %g = f32[16]{0} all-gather(%q), channel_id=3, replica_groups={{0,1}}, dimensions={0}"
  other = gather.replace("channel_id=3", "channel_id=1")
  text = f"""
%start (q: f32[8]) -> f32[16] {{
{gather}
  ROOT %c = f32[16] custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}
%done (q: f32[8]) -> f32[16] {{
{gather}
  ROOT %c = f32[16] custom-call(%g), custom_call_target="AsyncCollectiveDone"
}}
ENTRY %main (q: f32[8]) -> f32[16] {{
  %s = f32[16] fusion(%q), calls=%start
  %d = f32[16] fusion(%s), calls=%done
{other}
{other}
}}
"""
  assert read_collectives(text) == 3 * [Collective("all-gather", 2, 64, 1)]


def test_bytes_around_a_ring():
  assert Collective("all-reduce", 4, 100, 2).sent == 2 * 2 * 100 * 3 / 4
  assert Collective("all-gather", 4, 100, 1).sent == 75
  assert Collective("collective-permute", 2, 100, 3).sent == 300


def test_of_a_compiled_loop():
  mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))

  def many(x):
    step = lambda total, _: (  # noqa: E731
      jax.lax.pcast(jax.lax.psum(total, "b") * 0.1, "b", to="varying"),
      None,
    )
    return jax.lax.scan(step, x, length=7)[0]

  mapped = jax.jit(jax.shard_map(many, mesh=mesh, in_specs=P("a", "b"), out_specs=P("a", "b")))
  text = mapped.lower(jnp.ones([2, 12], jnp.float32)).compile().as_text()
  found = read_collectives(text)
  assert {(c.kind, c.devices) for c in found} == {("all-reduce", 4)}
  assert sum(c.times * c.payload for c in found) == 7 * 3 * 4
