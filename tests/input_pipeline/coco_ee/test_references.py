"""References without training: what each picture is, and work that continues."""

import json
import os

import numpy as np
import PIL.Image
import pytest

from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import references
from exedit.input_pipeline.errors import DataError
from exedit.runtime import doors
from tests import bench as layout
from tests.refusals import refusal


@pytest.fixture
def root(tmp_path):
  return layout.write(tmp_path / 'bench')


def door(*flags):
  doors.call(references.main, references.FLAGS, references.__doc__, ['references', *flags])


def example(mask, seed=0, size=24):
  source, exemplar = (np.asarray(layout.picture(s, (size, size))) for s in (seed, seed + 50))
  return dict(source=source, mask=np.asarray(mask), exemplar=exemplar)


@pytest.mark.parametrize('mask', layout.MASKS.values(), ids=layout.MASKS)
@pytest.mark.parametrize('kind', references.KINDS)
def test_what_is_kept_is_the_sources_own(kind, mask):
  edit = example(mask)
  before = {name: value.copy() for name, value in edit.items()}
  result = references.KINDS[kind](edit)
  assert result.dtype == np.uint8 and result.shape == edit['source'].shape
  keep = edit['mask'] == 0
  np.testing.assert_array_equal(result[keep], edit['source'][keep])
  if kind == 'harmonised' and not keep.any():
    np.testing.assert_array_equal(result, references.copy_paste(edit))
  if kind != 'source':
    assert (result[~keep] != edit['source'][~keep]).any()
  for name, value in before.items():
    np.testing.assert_array_equal(edit[name], value)


def test_copy_paste_is_the_exemplar_squashed_into_the_box():
  edit = example(layout.MASKS['box'])
  squashed = PIL.Image.fromarray(edit['exemplar']).resize((10, 12), PIL.Image.Resampling.BICUBIC)
  result = references.copy_paste(edit)
  np.testing.assert_array_equal(result[6:18, 4:14], np.asarray(squashed))


def test_a_grey_mask_mixes():
  edit = example(np.full((24, 24), 51, np.uint8))  # a fifth
  wanted = 0.8 * edit['source'] + 0.2 * edit['exemplar']
  assert np.abs(references.copy_paste(edit) - wanted).max() <= 0.5


# Colour transfer.


def lab(rgb):
  """CIELAB of sRGB under D65, written from the standard: uint8 or 0..255 [... 3]."""
  v = np.asarray(rgb, np.float64) / 255
  linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
  matrix = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
  ]
  xyz = linear @ np.array(matrix).T / [0.95047, 1.0, 1.08883]
  f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
  x, y, z = np.moveaxis(f, -1, 0)
  return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def test_transferred_colours_have_the_mean_and_deviation_of_their_surroundings():
  rng = np.random.default_rng(0)
  patch = rng.integers(90, 160, (20, 30, 3), np.uint8)
  like = rng.integers(60, 150, (400, 3), np.uint8)
  moved = references.transfer_colour(patch, like)
  np.testing.assert_allclose(lab(moved).mean((0, 1)), lab(like).mean(0), atol=1e-3)
  np.testing.assert_allclose(lab(moved).std((0, 1)), lab(like).std(0), atol=1e-3)
  start, end = lab(patch), lab(moved)  # and is an increasing line in every channel
  for c in range(3):
    assert np.corrcoef(start[..., c].ravel(), end[..., c].ravel())[0, 1] > 0.9999
  grey = lambda level, *shape: np.full((*shape, 3), level, np.uint8)
  moved = references.transfer_colour(grey(40, 4, 4), grey(200, 9))  # one colour has no deviation
  np.testing.assert_allclose(moved, 200, atol=1e-6)


def test_a_harmonised_edit_has_a_fainter_seam_than_a_paste():
  edit = example(layout.MASKS['box'], seed=9)
  inside, outside = np.s_[6:18, 4], np.s_[6:18, 3]
  jump = lambda picture: np.abs(picture[inside].astype(float) - picture[outside]).mean()
  assert jump(references.harmonised(edit)) < 0.5 * jump(references.copy_paste(edit))


# Writing.


@pytest.mark.parametrize('kind', references.KINDS)
def test_every_edit_gets_its_picture(root, tmp_path, kind):
  coco_ee.pack(str(root), str(tmp_path / 'packed'))
  assert references.write(str(root), kind, str(tmp_path / 'a')) == 4
  assert references.write(str(tmp_path / 'packed'), kind, str(tmp_path / 'b')) == 4
  edits = coco_ee.Bench(str(root), exemplar_size=None)
  names = [f'{edit_id:012d}.png' for edit_id in layout.IDS]
  assert sorted(os.listdir(tmp_path / 'a')) == sorted([*names, 'reference.json'])
  for k, name in enumerate(names):
    picture = np.asarray(PIL.Image.open(tmp_path / 'a' / name))
    np.testing.assert_array_equal(picture, references.KINDS[kind](edits[k]))
    assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_a_bad_edit_stops_the_work_and_the_same_command_makes_what_is_missing(
  root, tmp_path, capsys
):
  path = root / 'GT_4' / '000000000283_GT.png'
  data = path.read_bytes()
  path.write_bytes(data[:-30])
  with pytest.raises(DataError, match='000000000283_GT.png cannot be decoded'):
    references.write(str(root), 'source', str(tmp_path / 'out'))
  assert not [n for n in os.listdir(tmp_path / 'out') if n.startswith('.')]
  path.write_bytes(data)
  stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'out').iterdir()}
  door(f'--bench={root}', '--kind=source', f'--output={tmp_path / "out"}')
  assert f'{5 - len(stamps)} new pictures of source' in capsys.readouterr().out
  assert len(os.listdir(tmp_path / 'out')) == 5
  assert all((tmp_path / 'out' / n).stat().st_mtime_ns == stamp for n, stamp in stamps.items())


def test_results_are_never_mixed(root, tmp_path):
  output = str(tmp_path / 'out')
  references.write(str(root), 'source', output)
  with pytest.raises(DataError, match="was made with kind 'source', now it is 'copy_paste'"):
    references.write(str(root), 'copy_paste', output)
  other = layout.write(tmp_path / 'other', size=32)
  with pytest.raises(DataError, match='was made with bench_sha256'):
    references.write(str(other), 'source', output)
  settings = tmp_path / 'out' / 'reference.json'
  settings.write_text(json.dumps([1]))
  with pytest.raises(DataError, match='was made with made_by None'):
    references.write(str(root), 'source', output)
  settings.unlink()
  with pytest.raises(DataError, match='holds files and no reference.json'):
    references.write(str(root), 'source', output)


@pytest.mark.parametrize(
  'flags, line',
  [
    ([], '--bench=... is missing'),
    (['--bench=x', '--kind=source'], '--output=... is missing'),
    (['--bench=x', '--output=y'], '--kind=... is missing'),
    (['--bench=x', '--kind=magic', '--output=y'], 'must be one of copy_paste, harmonised, source'),
    (['--bench=x', '--kind=source', '--output=y'], 'x is not a folder'),
  ],
)
def test_the_door_refuses_in_one_line(flags, line, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert line in refusal(capsys, door, *flags) and not list(tmp_path.iterdir())
