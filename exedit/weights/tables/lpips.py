"""LPIPS <-> torchvision's AlexNet or VGG-16 with the linear layers of the pip package lpips."""

from exedit.weights.translate import SAME, Row, Transform, conv

# The positions of the convolutions in torchvision's `features`, for each slice of lpips.
POSITIONS = {
  'alex': [[0], [3], [6], [8], [10]],
  'vgg': [[0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]],
}
WEIGHTS = Transform(lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1))  # [1 c 1 1], [c]


def _table(slices: list[list[int]]) -> list[Row]:
  """Returns the rows of the backbone, in the names of torchvision or lpips, and of the weights."""
  places = [(s, n) for s, positions in enumerate(slices, 1) for n in positions]
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


TABLES: dict[str, list[Row]] = {net: _table(slices) for net, slices in POSITIONS.items()}
