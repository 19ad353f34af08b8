"""LPIPS <-> torchvision's AlexNet, VGG-16 or SqueezeNet with the linear layers of lpips."""

from exedit.weights.translate import SAME, Row, Transform, conv

# The names of the convolutions in torchvision's `features`, for each slice of lpips.
_fire = lambda n: [f'{n}.{part}' for part in ('squeeze', 'expand1x1', 'expand3x3')]
NAMES = {
  'alex': [['0'], ['3'], ['6'], ['8'], ['10']],
  'vgg': ['0 2'.split(), '5 7'.split(), '10 12 14'.split(), '17 19 21'.split(), '24 26 28'.split()],
  'squeeze': [
    ['0'],
    *(_fire(3) + _fire(4), _fire(6) + _fire(7)),
    *(_fire(n) for n in (9, 10, 11, 12)),
  ],
}
WEIGHTS = Transform(lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1))  # [1 c 1 1], [c]


def _table(slices: list[list[str]]) -> list[Row]:
  """Returns the rows of the backbone, in the names of torchvision or lpips, and of the weights."""
  places = [(s, n) for s, names in enumerate(slices, 1) for n in names]
  rows = []
  for ours, (s, n) in enumerate(places):
    rows += conv(f'[features.|net.slice{s}.]{n}', f'convs.{ours}')
  return rows + [
    ('lin{i}.model.1.weight', 'weights.{i}', WEIGHTS),
    ('lins.{i}.model.1.weight', None, SAME),  # the same tensors again, in a list
    ('scaling_layer.shift', None, SAME),  # constants
    ('scaling_layer.scale', None, SAME),
    ('classifier.{i}.weight', None, SAME),  # the classifier
    ('classifier.{i}.bias', None, SAME),
  ]


TABLES: dict[str, list[Row]] = {net: _table(slices) for net, slices in NAMES.items()}
