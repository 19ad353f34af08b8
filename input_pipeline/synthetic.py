"""The embedded default data: drawn scenes, written through the same TFRecord schema as Open Images.

Everything is a function of (seed, split, index); looks of `validation` and `bench` never occur in
`train`. `bench` draws a scene again with another look in its box: the ground truth of an edit.
"""

import contextlib
import fcntl
import glob
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator

import cv2
import numpy as np

from exedit.runtime import doors, remote

from . import crops, latent_shards, tf_example, tfrecord
from .errors import DataError
from .scenes import GRID, MARGIN, SHAPES, VERSION, Look, Scene, draw, sample_look, sample_scene

MADE_BY = 'input_pipeline.synthetic'
JPEG_QUALITY = 95
STREAMS = dict(train=0, validation=1, bench=2)


def scene_at(seed: int, split: str, index: int) -> tuple[Scene, tuple[Look, ...]]:
  """Scene and looks number `index` of a split."""
  rng = np.random.default_rng([seed, STREAMS[split], index])
  scene = sample_scene(rng)
  return scene, tuple(sample_look(rng, split != 'train') for _ in scene.poses)


def record(seed: int, split: str, index: int, size=GRID) -> bytes:
  """Scene number `index` of a split as a serialized example with the features of open_images_v4."""
  scene, looks = scene_at(seed, split, index)
  image = cv2.cvtColor(draw(scene, looks, size), cv2.COLOR_RGB2BGR)
  full_color = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
  quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
  data = cv2.imencode('.jpg', image, quality + full_color)[1].tobytes()
  boxes = np.array([pose.box for pose in scene.poses], np.float32) / GRID
  labels = np.array([SHAPES.index(look.shape) for look in looks], np.int64)
  none = np.zeros(len(looks), np.int64)
  flags = ('source', 'is_occluded', 'is_truncated', 'is_group_of', 'is_depiction', 'is_inside')
  return tf_example.serialize_example(
    {
      'image': data,
      'image/filename': f'{split}_{index:07d}.jpg'.encode(),
      'bobjects/bbox': boxes.reshape(-1),
      'bobjects/label': labels,
    }
    | {f'bobjects/{flag}': none for flag in flags}
  )


def settings(*, scenes=20000, val_scenes=1000, seed=0, size=GRID, shards=4) -> dict:
  """The settings of a data set, checked; DataError names the one that cannot be."""
  for name, value in (('scenes', scenes), ('val_scenes', val_scenes), ('shards', shards)):
    if value < 1:
      raise DataError(f'{name}={value}: must be at least 1')
  if not 0 <= seed < 2**32:
    raise DataError(f'seed={seed}: must be at least 0 and less than 2**32')
  if size < GRID or size % GRID:
    raise DataError(f'size={size}: must be a multiple of {GRID}')
  if shards > scenes:
    raise DataError(f'shards={shards}: more than scenes={scenes}')
  return dict(
    version=VERSION, scenes=scenes, val_scenes=val_scenes, seed=seed, size=size, shards=shards
  )


def write(root: str, **kwargs) -> dict:
  """Writes the splits `train` and `validation` as shards, then manifest.json, which it returns.

  Takes the arguments of `settings`. Files of an earlier writing are replaced; after a failure none
  is left.
  """
  import tqdm

  made = settings(**kwargs)
  _read_manifest(root)  # never replace what somebody else made
  _remove(root)
  files = {}
  splits = (('train', made['scenes'], made['shards']), ('validation', made['val_scenes'], 1))
  try:
    total, every = made['scenes'] + made['val_scenes'], 0.1 if sys.stderr.isatty() else 10
    with tqdm.tqdm(total=total, unit='scene', desc='drawing', mininterval=every) as bar:
      for split, scenes, shards in splits:
        for shard in range(shards):
          name = f'synthetic-{split}.tfrecord-{shard:05d}-of-{shards:05d}'
          indices = range(shard * scenes // shards, (shard + 1) * scenes // shards)
          records = _records(made, split, indices, bar)
          files[name] = tfrecord.write_shard(os.path.join(root, name), records)
    manifest = dict(made_by=MADE_BY, settings=made, files=files)
    _write_json(_manifest(root), manifest)
  except BaseException as error:
    _remove(root)
    if isinstance(error, OSError):
      raise DataError(
        f'{root}: cannot be written ({error.strerror}); name another folder'
      ) from error
    raise
  return manifest


def ensure(root: str, **kwargs) -> dict:
  """Writes the data unless it is there whole; returns the manifest. Of several at once one writes.

  DataError where it is there with other settings.
  """
  wanted = settings(**kwargs)
  manifest = _whole(root, wanted)
  if manifest is None:
    with _alone(root):
      manifest = _whole(root, wanted) or write(root, **kwargs)  # another may have just done so
  return manifest


def _whole(root: str, wanted: dict) -> dict | None:
  """The manifest of the data with these settings, None where it is to be written.

  DataError where it is there with other settings, or not of this machine and not whole.
  """
  if latent_shards.manifest(root) is not None:
    raise DataError(f'{root} holds latents that exedit.encode has made: name another folder')
  manifest = _read_manifest(root)
  if manifest is None and remote.is_remote(root):
    raise DataError(
      f'scenes are drawn into a folder of this machine and {root} holds none: draw them here '
      f'(python -m input_pipeline.synthetic) and copy the folder to {root}'
    )
  if manifest is None:
    return None
  for name, value in wanted.items():
    found = manifest['settings'].get(name)
    if found != value:
      raise DataError(
        f'{root} was made with {name}={found}, not {name}={value}; remove it or name another folder'
      )
  sizes = {name: file['bytes'] for name, file in manifest['files'].items()}
  if any(_size(os.path.join(root, name)) != size for name, size in sizes.items()):
    if remote.is_remote(root):
      raise DataError(f'{root} is not a whole copy of the folder it was copied from: copy it again')
    return None
  return manifest


@contextlib.contextmanager
def _alone(root: str) -> Iterator[None]:
  """One process at a time; the folder itself is locked, so that nothing is left in it."""
  with contextlib.ExitStack() as held:
    with contextlib.suppress(OSError):  # a disk without locks; or without rights, as writing says
      os.makedirs(root, exist_ok=True)
      folder = os.open(root, os.O_RDONLY)
      held.callback(os.close, folder)
      try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        print(f'{root}: another run is drawing the same scenes; waiting for it', file=sys.stderr)
        fcntl.flock(folder, fcntl.LOCK_EX)
    yield


def _read_manifest(root: str) -> dict | None:
  """The manifest of an earlier writing, None without one; DataError where it is not ours."""
  try:
    if remote.is_remote(root):
      manifest = json.loads(remote.read(_manifest(root)))
    else:
      with open(_manifest(root)) as file:
        manifest = json.load(file)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError) as error:
    raise DataError(
      f'{_manifest(root)} cannot be read ({error}); remove it or name another folder'
    ) from error
  if not isinstance(manifest, dict) or manifest.get('made_by') != MADE_BY:
    raise DataError(f'{_manifest(root)} was not made by {MADE_BY}; name another folder')
  return manifest


def _remove(root: str) -> None:
  here = glob.escape(root)
  shards = glob.glob(os.path.join(here, 'synthetic-*.tfrecord-*'))
  torn = glob.glob(os.path.join(here, '.synthetic-*.tfrecord-*')) + glob.glob(f'{here}/.manifest.*')
  for path in [_manifest(root), *shards, *torn]:
    if os.path.exists(path):
      os.remove(path)


def _size(path: str) -> int:
  if remote.is_remote(path):
    return remote.info(path)[0]
  return os.path.getsize(path) if os.path.exists(path) else -1


def _records(made: dict, split: str, indices: range, bar) -> Iterator[bytes]:
  for index in indices:
    yield record(made['seed'], split, index, made['size'])
    bar.update()


def _manifest(root: str) -> str:
  return os.path.join(root, 'manifest.json')


def _write_json(path: str, value: dict) -> None:
  fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix='.manifest.')
  with os.fdopen(fd, 'w') as file:
    json.dump(value, file, indent=2)
  os.chmod(temporary, 0o644)
  os.replace(temporary, path)


def bench(
  n: int, *, seed: int, size: int, exemplar_size: int, truths=10, scene_size=GRID, exemplar_pad=2
) -> Iterator[dict]:
  """Held-out edits with their ground truth; edit number i depends on (seed, i) alone.

  Yields dict(source uint8 [h w 3], mask uint8 [h w] (255 = repaint: the object's box and the reach
  of its shadow), exemplar uint8 [s s 3], truths uint8 [truths h w 3], answer). The exemplar is the
  look of truths[answer] in another scene, cut as in training; the source holds a look of its own,
  so the answer can come from the exemplar only. exemplar_pad is in pixels of the drawn scene.
  """
  for i in range(n):
    rng = np.random.default_rng([seed, STREAMS['bench'], i])
    scene, other = sample_scene(rng), sample_scene(rng)
    looks = [sample_look(rng, held_out=True) for _ in range(truths + 1)]
    bystanders = tuple(sample_look(rng, held_out=True) for _ in range(2))
    rest, other_rest = bystanders[: len(scene.poses) - 1], bystanders[1 : len(other.poses)]
    answer = int(rng.integers(truths))
    drawn = [crops.resize(draw(scene, (look, *rest), scene_size), size) for look in looks]
    place = draw(other, (looks[answer], *other_rest), scene_size)
    y0, x0, y1, x1 = (c * scene_size // GRID for c in other.poses[0].box)
    yield dict(
      source=drawn[truths],
      mask=_reach(scene.poses[0].box, size),
      exemplar=crops.exemplar(place, (x0, y0, x1, y1), exemplar_size, exemplar_pad),
      truths=np.stack(drawn[:truths]),
      answer=answer,
    )


def _reach(box: tuple[int, int, int, int], size: int) -> np.ndarray:
  """The box and the reach of its shadow as a mask [size size]."""
  y0, x0, y1, x1 = (c / GRID for c in box)
  mask = np.zeros((size, size), np.uint8)
  top, left = (max(0, math.floor((c - MARGIN) * size)) for c in (y0, x0))
  mask[top : math.ceil((y1 + MARGIN) * size), left : math.ceil((x1 + MARGIN) * size)] = 255
  return mask


def write_example(output: str, number: int, *, seed: int, size: int) -> None:
  """Held-out edit `number` as image.png, mask.png, exemplar.png, for doors that take files."""
  if seed < 0 or not 8 <= size <= 4096:
    raise DataError(f'seed {seed} must be at least 0, and size {size} between 8 and 4096')
  scene = -(-size // GRID) * GRID  # drawn at a whole multiple of the grid, then brought to size
  *_, edit = bench(number + 1, seed=seed, size=size, exemplar_size=size, scene_size=scene)
  os.makedirs(output, exist_ok=True)
  for name, key in (('image', 'source'), ('mask', 'mask'), ('exemplar', 'exemplar')):
    pixels = edit[key]
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    if not cv2.imwrite(os.path.join(output, f'{name}.png'), pixels):
      raise DataError(f'{output}/{name}.png cannot be written; name another folder')


def main(output: str, example: int | None = None, **kwargs) -> None:
  """The door: draws what the flags ask for, unless it lies there already."""
  if not output:
    raise DataError('--output=FOLDER is missing')
  if example is not None:
    write_example(output, example, seed=kwargs['seed'], size=kwargs['size'])
    print(f'{output}: image.png, mask.png and exemplar.png of held-out edit {example}')
    return
  manifest = ensure(output, **kwargs)
  counts = [file['records'] for file in manifest['files'].values()]
  print(f'{output}: {sum(counts)} scenes in {len(counts)} shards')


def _flags():
  from absl import flags

  values = flags.FlagValues()
  flags.DEFINE_string('output', '', 'folder to write to', flag_values=values)
  for name, about in (
    ('scenes', 'training scenes'),
    ('val_scenes', 'validation scenes'),
    ('seed', 'of everything that is drawn'),
    ('size', 'side of a scene in pixels'),
    ('shards', 'files of the training split'),
  ):
    flags.DEFINE_integer(name, settings()[name], about, flag_values=values)
  about = 'write held-out edit number N as image.png, mask.png and exemplar.png instead'
  flags.DEFINE_integer('example', None, about, 0, flag_values=values)
  return values


if __name__ == '__main__':
  doors.call(main, _flags(), __doc__, sys.argv)
