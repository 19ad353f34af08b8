"""Inception <-> the state dict of pytorch-fid (pt_inception-2015-12-05-6726825d.pth)."""

from exedit.weights.translate import CONV, SAME, Row, under

CONV_NORM: list[Row] = [
  ('conv.weight', 'conv.kernel', CONV),
  ('bn.weight', 'scale', SAME),
  ('bn.bias', 'bias', SAME),
  ('bn.running_mean', 'mean', SAME),
  ('bn.running_var', 'var', SAME),
  ('bn.num_batches_tracked', None, SAME),  # a counter of training
]

STEM = {
  'Conv2d_1a_3x3': 'conv1a',
  'Conv2d_2a_3x3': 'conv2a',
  'Conv2d_2b_3x3': 'conv2b',
  'Conv2d_3b_1x1': 'conv3b',
  'Conv2d_4a_3x3': 'conv4a',
}
BLOCKS = ('5b', '5c', '5d', '6a', '6b', '6c', '6d', '6e', '7a', '7b', '7c')
BRANCHES = (  # of all kinds of block; both sides use the same names
  'branch1x1',
  'branch3x3',
  'branch3x3_{i}',
  'branch3x3_2a',
  'branch3x3_2b',
  'branch3x3dbl_{i}',
  'branch3x3dbl_3a',
  'branch3x3dbl_3b',
  'branch5x5_{i}',
  'branch7x7_{i}',
  'branch7x7dbl_{i}',
  'branch7x7x3_{i}',
  'branch_pool',
)

TABLE: list[Row] = [
  *(row for a, b in STEM.items() for row in under(f'{a}.', f'{b}.', CONV_NORM)),
  *(
    row
    for block in BLOCKS
    for branch in BRANCHES
    for row in under(f'Mixed_{block}.{branch}.', f'mixed{block}.{branch}.', CONV_NORM)
  ),
  ('fc.weight', None, SAME),  # the classifier, which FID does not use
  ('fc.bias', None, SAME),
]
