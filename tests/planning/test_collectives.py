import pytest

from exedit.planning import collectives
from exedit.planning.collectives import Collective
from exedit.training import sharding
from tests import on_devices

# As XLA prints them, shortened where nothing reads.
CPU = """
%region_1.0 (reduce_scatter.0: f32[], reduce_scatter.1: f32[]) -> f32[] {
  ROOT %add.0 = f32[] add(%reduce_scatter.0, %reduce_scatter.1), metadata={op_name="all-reduce("}
}
  %all_gather.7 = f32[4,4,8]{2,1,0} all-gather(%fusion), replica_groups={{0,1,2,3},{4,5,6,7}}
  %reduce_scatter.10 = f32[1,8]{1,0} reduce-scatter(%r), replica_groups=[2,4]<=[8], dimensions={0}
  %ppermute.3 = f32[8]{0} collective-permute(%bitcast.1), source_target_pairs={{0,4},{4,0}}
  %all-to-all = (f32[1,3]{1,0}, f32[1,3]{1,0}) all-to-all(%b, %b), replica_groups={{0,1},{2,3}}
  %get-tuple-element.3 = f32[1,3]{1,0} get-tuple-element(%all-to-all), index=0
  ROOT %all-reduce = (f32[8]{0}, s32[], f32[4,8]{1,0}) all-reduce(%p, %q, %r), to_apply=%region_1.0
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


def test_a_compiled_programs_collectives():
  assert list(collectives.find(CPU)) == [
    Collective('all-gather', 4 * 128, 'f32', 4),
    Collective('reduce-scatter', 4 * 4 * 8, 'f32', 4),
    Collective('collective-permute', 4 * 8, 'f32', 0),
    Collective('all-to-all', 4 * 6, 'f32', 2),
    Collective('all-reduce', 4 * (8 + 1 + 32), 'f32', 0),
  ]


def test_what_a_tpu_starts_and_ends_or_spreads_over_fusions_counts_once():
  assert collectives.count(TPU) == {
    'all-gather': (2, 2 * 64 * 1024 + 4 * 32),
    'reduce-scatter': (1, 2 * 64 * 128),
    'collective-permute': (1, 2 * 48 * 64),
    'all-reduce': (1, 400),
  }


def test_a_lowered_programs_collectives():
  assert list(collectives.find(STABLEHLO)) == [
    Collective('all-gather', 2 * 128, 'bf16', 4),
    Collective('reduce-scatter', 4 * 32, 'f32', 2),
  ]


def test_a_program_without_any():
  assert collectives.count('ENTRY %main { ROOT %a = f32[2] add(%b, %b) }') == {}


@pytest.fixture(scope='module')
def full_size():
  """Lowering takes 20 s and more, so once; two axes, because that sends the most."""
  (found,) = on_devices.with_devices(8, on_devices.full_size, [[dict(sharding='fsdp', data=2)]])
  return [Collective(**one) for one in found]


def test_the_full_size_step_sends_few_and_large_things(full_size):
  """Inside shard_map all collectives are in the lowered program: no compiler adds to them."""
  kernels = 922.8e6  # parameters that are split; biases, norms and the like are not
  by_kind = {kind: [one for one in full_size if one.kind == kind] for kind in collectives.KINDS}
  gathered, scattered = by_kind['all-gather'], by_kind['reduce-scatter']
  assert len(full_size) <= 60
  assert {one.kind for one in full_size} == {'all-gather', 'reduce-scatter', 'all-reduce'}
  assert {(one.dtype, one.group) for one in gathered} == {('bf16', 4)}
  assert {(one.dtype, one.group) for one in scattered} == {('f32', 4)}
  assert sum(one.bytes for one in gathered) == pytest.approx(2 * kernels, rel=0.002)
  assert sum(one.bytes for one in scattered) == pytest.approx(4 * kernels, rel=0.002)
  summed = sum(one.bytes for one in by_kind['all-reduce'])  # over data: of each device's quarter
  assert summed == pytest.approx(kernels, rel=0.005)


def test_no_bucket_is_much_larger_than_the_others(full_size):
  """What waits for one bucket overlaps with the others."""
  sizes = [one.bytes for one in full_size if one.kind == 'all-gather']
  assert max(sizes) < 2 * sum(sizes) / sharding.COUNT
