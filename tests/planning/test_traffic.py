import pytest

from exedit.planning import traffic

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
def test_size_is_what_lies_in_memory(type_, expected):
  assert traffic.size(type_) == expected


# A loop of 5 over a product and an update in place; then a copy onto the chip, and a gather.
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
LOOP = (ROW + ROW) + (ROW + ROW) + (ROW + ROW)  # cut, tanh, put: each reads a row and writes one
REST = 8 * ROW + 0 + 16 * ROW  # onto the chip, there, and back


def test_traffic_of_a_program():
  assert traffic.count(PROGRAM) == 5 * LOOP + REST


def test_the_compilers_word_on_how_often_a_loop_runs_comes_first():
  known = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
  assert traffic.count(PROGRAM.replace('body=%body', known)) == 7 * LOOP + REST


def test_branches_and_calls_count():
  text = PROGRAM.replace(
    'while(%begin), condition=%condition, body=%body', 'call(%begin), to_apply=%body'
  )
  assert traffic.count(text) == LOOP + REST
  text = PROGRAM.replace(
    'while(%begin), condition=%condition, body=%body',
    'conditional(%zero, %begin, %begin), branch_computations={%body, %body}',
  )
  assert traffic.count(text) == 2 * LOOP + REST
