"""The text of programs: collectives, and bytes moved through memory."""

import re

import pytest

from exedit.planning import hlo
from exedit.planning.hlo import Collective
from exedit.training import sharding
from tests import on_devices

# As XLA prints them, without the attributes that nothing reads.
CPU = """
%region_1.0 (reduce_scatter.0: f32[], reduce_scatter.1: f32[]) -> f32[] {
  ROOT %add.0 = f32[] add(%reduce_scatter.0, %reduce_scatter.1), metadata={op_name="all-reduce("}
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %all_gather.7 = f32[4,4,8]{2,1,0} all-gather(%fusion), replica_groups={{0,1,2,3},{4,5,6,7}}
  %reduce_scatter.10 = f32[1,8]{1,0} reduce-scatter(%r), replica_groups=[2,4]<=[8], dimensions={0}
  %ppermute.3 = f32[8]{0} collective-permute(%bitcast.1), source_target_pairs={{0,4},{4,0}}
  %all-to-all = (f32[1,3]{1,0}, f32[1,3]{1,0}) all-to-all(%b, %b), replica_groups={{0,1},{2,3}}
  %get-tuple-element.3 = f32[1,3]{1,0} get-tuple-element(%all-to-all), index=0
  ROOT %all-reduce = (f32[8]{0}, s32[], f32[4,8]{1,0}) all-reduce(%p, %q, %r), to_apply=%region_1.0
}
"""
TPU = """
%fusion.1 (param_0: bf16[64,256]) -> bf16[64,1024] {
  %all-gather.9 = bf16[64,1024]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups={{0,1,2,3}}, \
frontend_attributes={chain_id="0"}, backend_config={"flag_configs":[]}
}
%fusion.2 (param_0: bf16[64,256]) -> bf16[64,1024] {
  %all-gather.11 = bf16[64,1024]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), \
replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
}
%all-reduce-scatter (input: bf16[64,128]) -> bf16[16,128] {
  %all-reduce.2 = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%pad), replica_groups={{0,1,2,3}}
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %fusion = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} fusion(%f), calls=%all-reduce-scatter
  %collective-permute-start = (bf16[48,64]{1,0:T(8,128)(2,1)}, bf16[48,64]{1,0}, u32[]{:S(2)}, \
u32[]{:S(2)}) collective-permute-start(%slice), source_target_pairs={{0,1},{1,2}}
  %collective-permute-done = bf16[48,64]{1,0} collective-permute-done(%collective-permute-start)
  %all-gather-start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), \
replica_groups={{0,1,2,3}}
  %all-gather-done = f32[8,4]{1,0} all-gather-done(%all-gather-start)
  %all-reduce-start = f32[100]{0} all-reduce-start(%y), replica_groups={{0,1,2,3}}
  %all-reduce-done = f32[100]{0} all-reduce-done(%all-reduce-start)
}
"""
STABLEHLO = """
  %3 = "stablehlo.all_gather"(%2) <{all_gather_dim = 0 : i64, replica_groups = dense<\
[[0, 1, 2, 3], [4, 5, 6, 7]]> : tensor<2x4xi64>, use_global_device_ids}> : \
(tensor<1x4x8xbf16>) -> tensor<4x4x8xbf16>
  %6 = "stablehlo.reduce_scatter"(%5) <{replica_groups = dense<[[0, 1], [2, 3]]> : \
tensor<2x2xi64>, scatter_dimension = 0 : i64}> ({
    ^bb0(%arg2: tensor<f32>, %arg3: tensor<f32>):
      %9 = stablehlo.add %arg2, %arg3 : tensor<f32>
      stablehlo.return %9 : tensor<f32>
    }) : (tensor<4x8xf32>) -> tensor<2x8xf32>
"""


def test_collectives_of_a_compiled_program():
  assert list(hlo.collectives(CPU)) == [
    Collective('all-gather', 4 * 128, 'f32', 4),
    Collective('reduce-scatter', 4 * 4 * 8, 'f32', 4),
    Collective('collective-permute', 4 * 8, 'f32', 0),
    Collective('all-to-all', 4 * 6, 'f32', 2),
    Collective('all-reduce', 4 * (8 + 1 + 32), 'f32', 0),
  ]


@pytest.mark.parametrize(
  'groups, count',
  [
    ('{{0,1,2,3},{4,5,6,7}}', 4),
    ('[2,4]<=[8]', 4),
    ('[2,4]<=[2,2,2]T(1,0,2)', 4),
    ("mesh['data'=2,'fsdp'=4] {'fsdp'}", 4),  # XLA of jax 0.12
    ("mesh['a'=2,'b'=4,'c'=2], device_ids=([4,4]T(1,0)) {'a','b'}", 8),
    ("mesh['a'=2,'b'=8] {'a','b':(2)2}", 4),  # a part of an axis
    ('{}', 0),
  ],
)
def test_groups_of_devices_in_every_form(groups, count):
  types = 'f32[8,4]{1,0} reduce-scatter(%p), replica_groups='
  text = f'ENTRY %main (p: f32[8]) -> f32[] {{\n  %x = {types}{groups}, dimensions={{0}}\n}}\n'
  assert list(hlo.collectives(text)) == [
    Collective('reduce-scatter', 128 * max(count, 1), 'f32', count)
  ]


MESH = (
  '#stablehlo.mesh<axes = [#stablehlo.mesh_axis<name = "x", size = 2>, '
  '#stablehlo.mesh_axis<name = "y", size = 4>]>'
)


@pytest.mark.parametrize(
  'mesh, axes, count',
  [
    ('@mesh_0', ['<name = "fsdp">'], 4),
    ('@mesh_0', ['<name = "data">', '<name = "fsdp">'], 8),
    ('@mesh_0', ['<name = "fsdp", sub_axis_info = (1)2>'], 2),
    (MESH, ['<name = "y">'], 4),
  ],
)
def test_groups_of_devices_along_the_axes_of_a_mesh(mesh, axes, count):
  """StableHLO of jax 0.12."""
  axes = ', '.join(f'#stablehlo.axis_ref{axis}' for axis in axes)
  groups = f'#stablehlo.replica_group_mesh_axes<mesh = {mesh}, axes = [{axes}]>'
  dense = 'dense<[[0, 1, 2, 3], [4, 5, 6, 7]]> : tensor<2x4xi64>'
  meshes = 'sdy.mesh @mesh = <["data"=1]>\n  sdy.mesh @mesh_0 = <["data"=2, "fsdp"=4]>'
  one, _ = hlo.collectives(f'{meshes}\n{STABLEHLO.replace(dense, groups)}')
  assert one == Collective('all-gather', 2 * 128, 'bf16', count)


@pytest.mark.parametrize('text', [CPU, STABLEHLO])
def test_groups_of_an_unknown_form_are_an_error(text):
  with pytest.raises(ValueError, match='unknown form: replica_groups ?= ?like'):
    list(hlo.collectives(re.sub(r'(replica_groups ?= ?)(\{|dense)', r'\1like_\2', text)))


def test_asynchronous_pairs_and_gathers_spread_over_fusions_count_once():
  assert hlo.count_collectives(TPU) == {
    'all-gather': (2, 2 * 64 * 1024 + 4 * 32),
    'reduce-scatter': (1, 2 * 64 * 128),
    'collective-permute': (1, 2 * 48 * 64),
    'all-reduce': (1, 400),
  }


def test_collectives_of_a_lowered_program():
  assert list(hlo.collectives(STABLEHLO)) == [
    Collective('all-gather', 2 * 128, 'bf16', 4),
    Collective('reduce-scatter', 4 * 32, 'f32', 2),
  ]


@pytest.fixture(scope='module')
def full_size():
  """The collectives of the step at full size, with the mesh that sends the most."""
  (found,) = on_devices.with_devices(8, on_devices.full_size, [[dict(sharding='fsdp', data=2)]])
  return [Collective(**one) for one in found]


def test_the_full_size_step_has_few_and_large_collectives(full_size):
  """The lowered program contains all collectives, because the step is inside shard_map."""
  kernels = 922.8e6  # split parameters; biases, norms and the like are not split
  by_kind = {kind: [one for one in full_size if one.kind == kind] for kind in hlo.KINDS}
  gathered, scattered = by_kind['all-gather'], by_kind['reduce-scatter']
  assert len(full_size) <= 60
  assert {one.kind for one in full_size} == {'all-gather', 'reduce-scatter', 'all-reduce'}
  assert {(one.dtype, one.group) for one in gathered} == {('bf16', 4)}
  assert {(one.dtype, one.group) for one in scattered} == {('f32', 4)}
  assert sum(one.bytes for one in gathered) == pytest.approx(2 * kernels, rel=0.002)
  assert sum(one.bytes for one in scattered) == pytest.approx(4 * kernels, rel=0.002)
  summed = sum(one.bytes for one in by_kind['all-reduce'])  # over data, of a quarter per device
  assert summed == pytest.approx(kernels, rel=0.005)
  sizes = [one.bytes for one in gathered]  # buckets of similar sizes overlap best
  assert max(sizes) < 2 * sum(sizes) / sharding.COUNT


KIB = 2**10


@pytest.mark.parametrize(
  'type_, expected',
  [
    ('f32[256,1024]{1,0:T(8,128)}', 2**20),
    ('bf16[256,1024]{1,0:T(8,128)(2,1)S(1)}', 0),  # on the chip
    ('bf16[4096,40]{1,0:T(8,128)(2,1)}', 4096 * 128 * 2),  # padded to the tile
    ('f32[3,40,4096]{1,2,0:T(8,128)}', 3 * 4096 * 128 * 4),
    ('(f32[1024]{0:T(1024)}, pred[1024]{0}, u32[]{:S(2)})', 5 * KIB),
  ],
)
def test_bytes_of_arrays_in_memory_include_their_padding(type_, expected):
  assert hlo.padded_bytes(type_) == expected


# A loop of 5 runs with an update in place; then a copy to on-chip memory, and a gather.
PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_slice (param_0: f32[8,1024], param_1: s32[]) -> f32[1,1024] {
  %param_0 = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:S(4)} parameter(1)
  ROOT %cut = f32[1,1024]{1,0:T(1,128)} dynamic-slice(%param_0, %param_1)
}

%fused_update (param_2: f32[8,1024], param_3: f32[1,1024], param_4: s32[]) -> f32[8,1024] {
  %param_2 = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %param_3 = f32[1,1024]{1,0:T(1,128)} parameter(1)
  %param_4 = s32[]{:S(4)} parameter(2)
  ROOT %put = f32[8,1024]{1,0:T(8,128)} dynamic-update-slice(%param_2, %param_3, %param_4)
}

%body (arg: (s32[], f32[8,1024])) -> (s32[], f32[8,1024]) {
  %arg = (s32[]{:S(4)}, f32[8,1024]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:S(4)} get-tuple-element(%arg), index=0
  %all = f32[8,1024]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %part = f32[1,1024]{1,0:T(1,128)} fusion(%all, %i), kind=kLoop, calls=%fused_slice
  %tanh = f32[1,1024]{1,0:T(1,128)} tanh(%part)
  %new = f32[8,1024]{1,0:T(8,128)} fusion(%all, %tanh, %i), kind=kLoop, calls=%fused_update
  ROOT %out = (s32[]{:S(4)}, f32[8,1024]{1,0:T(8,128)}) tuple(%i, %new)
}

%condition (arg.1: (s32[], f32[8,1024])) -> pred[] {
  %arg.1 = (s32[]{:S(4)}, f32[8,1024]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:S(4)} get-tuple-element(%arg.1), index=0
  %end = s32[]{:S(4)} constant(5)
  ROOT %less = pred[]{:S(4)} compare(%j, %end), direction=LT
}

ENTRY %main (x: f32[8,1024]) -> f32[16,1024] {
  %x = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:S(4)} constant(0)
  %begin = (s32[]{:S(4)}, f32[8,1024]{1,0:T(8,128)}) tuple(%zero, %x)
  %loop = (s32[]{:S(4)}, f32[8,1024]{1,0:T(8,128)}) while(%begin), condition=%condition, body=%body
  %y = f32[8,1024]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %copy = (f32[8,1024]{1,0:T(8,128)S(1)}, f32[8,1024]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%y)
  %near = f32[8,1024]{1,0:T(8,128)S(1)} copy-done(%copy)
  %more = f32[8,1024]{1,0:T(8,128)S(1)} exponential(%near)
  ROOT %whole = f32[16,1024]{1,0:T(8,128)} all-gather(%more), replica_groups={{0,1}}, dimensions={0}
}
"""
ROW = 4 * KIB
LOOP = 6 * ROW  # slice, tanh and update: each reads a row and writes a row
REST = 8 * ROW + 16 * ROW  # the copy to the chip, and the gather
WHILE = 'while(%begin), condition=%condition, body=%body'
BRANCHES = 'conditional(%zero, %begin, %begin), branch_computations={%body, %body}'


@pytest.mark.parametrize(
  'loop, runs',
  [
    (WHILE, 5),
    (WHILE + ', backend_config={"known_trip_count":{"n":"7"}}', 7),  # the compiler's own count
    ('call(%begin), to_apply=%body', 1),
    (BRANCHES, 2),
  ],
)
def test_memory_traffic_counts_every_run_of_a_computation(loop, runs):
  assert hlo.hbm_bytes(PROGRAM.replace(WHILE, loop)) == runs * LOOP + REST
