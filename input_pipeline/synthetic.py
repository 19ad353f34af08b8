"""Draws the default data set: scenes as TFRecord shards with the features of Open Images.

  python -m input_pipeline.synthetic --output=data/synthetic

Every picture depends only on (version, seed, split, index). Looks of the splits `validation` and
`bench` never occur in `train`. `bench` draws a scene again with another look in its box: the ground
truth of an edit. Version 2 of the scenes has subjects that a person can name, and captions.
"""

import contextlib
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2
import numpy as np

from exedit.runtime import doors, files, parallel, progress, remote

from . import (
  codec,
  crops,
  latent_shards,
  scenes,
  tf_example,
  tfds_data,
  tfrecord,
  vocabulary,
  world,
)
from .errors import DataError
from .tokenizer import FILES, FOLDER

GRID = scenes.GRID  # of all versions
WORLDS = {module.VERSION: module for module in (scenes, world)}
SCENES_PER_PROCESS = 1000  # fewer are drawn sooner than a process starts
CHUNK, AHEAD = 32, 32  # scenes that a process draws at a time; such chunks that are drawn ahead
MADE_BY = 'input_pipeline.synthetic'
MANIFEST, LOCK = 'manifest.json', '.lock'
STREAMS = dict(train=0, validation=1, bench=2)
# How the truths of an edit of the benchmark differ: in everything; in the subject alone; in the
# pattern alone; or a picture is made of a text.
KINDS = ('look', 'shape', 'pattern', 'text')


# One scene.


def scene_at(
  seed: int, split: str, index: int, version=1, without: Collection[str] = ()
) -> tuple[Any, tuple]:
  """Returns scene and looks number `index` of a split; `train` lacks the subjects `without`."""
  rng, drawn = np.random.default_rng([seed, STREAMS[split], index]), WORLDS[version]
  scene = drawn.sample_scene(rng)
  held_out = split != 'train'
  options = dict(without=without) if without and not held_out else {}
  return scene, tuple(drawn.sample_look(rng, held_out, **options) for _ in scene.poses)


def record(
  seed: int, split: str, index: int, size=GRID, version=1, without: Collection[str] = ()
) -> bytes:
  """Returns scene number `index` of a split, serialized with the features of open_images_v4.

  Version 2 adds `caption`, the text of the scene, and `bobjects/caption`, the text of each box.
  """
  scene, looks = scene_at(seed, split, index, version, without)
  drawn = WORLDS[version]
  data = codec.jpeg(drawn.draw(scene, looks, size))
  boxes = np.array([pose.box for pose in scene.poses], np.float32) / GRID
  labels = np.array([drawn.SHAPES.index(look.shape) for look in looks], np.int64)
  none = np.zeros(len(looks), np.int64)
  flags = ('source', 'is_occluded', 'is_truncated', 'is_group_of', 'is_depiction', 'is_inside')
  texts = {}
  if version > 1:
    texts['caption'] = world.caption(scene, looks).encode()
    texts['bobjects/caption'] = [world.phrase(look).encode() for look in looks]
  return tf_example.serialize_example(
    {
      'image': data,
      'image/filename': f'{split}_{index:07d}.jpg'.encode(),
      'bobjects/bbox': boxes.reshape(-1),
      'bobjects/label': labels,
    }
    | {f'bobjects/{flag}': none for flag in flags}
    | texts
  )


# The data set.


def settings(
  *, version=1, scenes=20000, val_scenes=1000, seed=0, size=GRID, shards=4, without=''
) -> dict:
  """Returns the settings of a data set after checking them.

  version: of the drawings: 1 has abstract shapes; 2 has subjects that a person can name, and
    captions. scenes: number of training scenes. val_scenes: number of validation scenes.
  seed: of all random numbers. size: side of a scene in pixels.
  shards: number of files of the training split.
  without: subjects that the training split lacks, with commas ('cat,fish'); version 2 only.

  Raises:
    DataError: for a value that cannot be.
  """
  if version not in WORLDS:
    raise DataError(f'version={version}: must be one of {", ".join(map(str, WORLDS))}')
  for name, value in (('scenes', scenes), ('val_scenes', val_scenes), ('shards', shards)):
    if value < 1:
      raise DataError(f'{name}={value}: must be at least 1')
  if not 0 <= seed < 2**32:
    raise DataError(f'seed={seed}: must be at least 0 and less than 2**32')
  if size < GRID or size % GRID:
    raise DataError(f'size={size}: must be a multiple of {GRID}')
  if shards > scenes:
    raise DataError(f'shards={shards}: more than scenes={scenes}')
  made = dict(
    version=version, scenes=scenes, val_scenes=val_scenes, seed=seed, size=size, shards=shards
  )
  return made | _without(version, without)


def _without(version: int, names: str) -> dict:
  """Returns the setting `without` after checking it; version 1 has none."""
  if version == 1:
    if names:
      raise DataError(f'without={names}: only version=2 has subjects that can be left out')
    return {}
  wanted = _listed(names)
  unknown = [name for name in wanted if name not in world.SHAPES]
  if unknown:
    raise DataError(f'without={names}: {unknown[0]} is none of {", ".join(world.SHAPES)}')
  if len(wanted) == len(world.SHAPES):
    raise DataError('without names all subjects: leave at least one')
  return dict(without=','.join(wanted))


def _listed(names: str) -> list[str]:
  return sorted({name.strip() for name in names.split(',')} - {''})


def provide(root: str, wanted: Mapping | None) -> str:
  """Returns where the data of a folder come from, and draws them there first if it holds none.

  Shards that are there already, and a data set of tensorflow-datasets, are used as they are.
  wanted: the arguments of `settings`; empty or None: nothing is drawn.

  Raises:
    DataError: if scenes are to be drawn and the folder holds other files or other scenes.
  """
  if latent_shards.manifest(root) is not None:
    return 'latents that exedit.encode has made'
  if prepared := tfds_data.find(root):
    return f'{prepared.name}, which tensorflow-datasets prepared as {prepared.file_format}'
  if wanted and (_manifest(root) is not None or not _shards(root)):
    ensure(root, **wanted)
  if _manifest(root) is not None and not _strangers(root):
    return f'scenes drawn by {MADE_BY}'
  return 'existing shards; no scenes were drawn' if wanted else 'existing shards'


def ensure(root: str, processes=1, **kwargs) -> dict:
  """Writes the data set unless it is complete; takes the arguments of `settings` and `write`.

  Returns the manifest. If several processes call it at once, one writes and the others wait.

  Raises:
    DataError: if the folder holds anything else, or cannot be written.
  """
  wanted = settings(**kwargs)
  manifest = _complete(root, wanted)
  if manifest is None:
    with _locked(root):
      manifest = _complete(root, wanted) or write(root, processes=processes, **kwargs)
  return manifest


def write(root: str, processes=1, **kwargs) -> dict:
  """Writes the splits `train` and `validation` as shards, and the manifest, which it returns.

  Takes the arguments of `settings`. The manifest is there from the beginning, without the files, so
  that a killed drawing can be told from other people's files. Replaces an earlier data set; a
  failure leaves none.

  processes: number of processes that draw. With more than one, a script that calls this needs
  `if __name__ == '__main__':`, as multiprocessing does.

  Raises:
    DataError: if the folder holds anything else, or cannot be written.
  """
  made = settings(**kwargs)
  _require_ours(root)
  _remove(root)
  written = {}
  manifest = dict(made_by=MADE_BY, settings=made, files=written)
  try:
    files.write_json(os.path.join(root, MANIFEST), manifest)
    total = made['scenes'] + made['val_scenes']
    with progress.bar(what='drawing', total=total, unit='scene') as bar, _pool(processes) as pool:
      for name, split, indices in _parts(made):
        records = _records(made, split, indices, bar, pool)
        written[name] = tfrecord.write_shard(os.path.join(root, name), records)
    if made['version'] > 1:
      vocabulary.write(os.path.join(root, FOLDER), world.words())
    files.write_json(os.path.join(root, MANIFEST), manifest)
  except BaseException as error:
    _remove(root)
    if isinstance(error, OSError):
      raise DataError(
        f'{root}: cannot be written ({error.strerror}); name another folder'
      ) from error
    raise
  return manifest


def _parts(made: Mapping) -> Iterator[tuple[str, str, range]]:
  """Yields (file name, split, indices of the scenes) of every shard with these settings."""
  for split, count, shards in (
    ('train', made['scenes'], made['shards']),
    ('validation', made['val_scenes'], 1),
  ):
    for shard in range(shards):
      name = f'synthetic-{split}.tfrecord-{shard:05d}-of-{shards:05d}'
      yield name, split, range(shard * count // shards, (shard + 1) * count // shards)


def _records(made: dict, split: str, indices: range, bar, pool: Executor | None) -> Iterator[bytes]:
  chunks = (indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK))
  draw = functools.partial(_drawn, made, split)
  ahead = map(draw, chunks) if pool is None else parallel.in_order(pool, draw, chunks, AHEAD)
  for records in ahead:
    yield from records
    bar.update(len(records))


def _drawn(made: dict, split: str, indices: range) -> list[bytes]:
  seed, size, version = (made[name] for name in ('seed', 'size', 'version'))
  without = _listed(made.get('without', ''))
  return [record(seed, split, i, size, version=version, without=without) for i in indices]


@contextlib.contextmanager
def _pool(processes: int) -> Iterator[Executor | None]:
  """Processes that draw, or None for this one alone."""
  if processes < 2:
    yield None
    return
  pool = ProcessPoolExecutor(processes, multiprocessing.get_context('spawn'), _start_process)
  try:
    yield pool
  except BrokenProcessPool as error:
    raise DataError('a process that drew scenes was killed: try --processes=1') from error
  finally:
    pool.shutdown(cancel_futures=True)


def _start_process() -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends them
  parallel.end_with_parent()
  cv2.setNumThreads(1)


def _complete(root: str, wanted: dict) -> dict | None:
  """Returns the manifest of a complete data set with these settings, or None if it must be written.

  Raises:
    DataError: if the folder holds anything else, or is in a store, where nothing is drawn.
  """
  if latent_shards.manifest(root) is not None:
    raise DataError(f'{root} holds latents that exedit.encode has made: name another folder')
  manifest = _manifest(root)
  if manifest is None and remote.is_remote(root):
    raise DataError(
      f'scenes are drawn into a folder of this machine and {root} holds none: draw them here '
      f'(python -m input_pipeline.synthetic) and copy the folder to {root}'
    )
  _require_ours(root)
  if manifest is None:
    return None
  for name, value in wanted.items():
    found = manifest['settings'].get(name)
    if found != value:
      raise DataError(
        f'{root} was made with {name}={found}, not {name}={value}; remove it or name another folder'
        + (', or use it as it is (--config.synthetic=None)' if manifest['files'] else '')
      )
  sizes = {name: manifest['files'].get(name, {}).get('bytes') for name, *_ in _parts(wanted)}
  whole = all(_size(os.path.join(root, name)) == size for name, size in sizes.items())
  if not whole or any(_size(os.path.join(root, name)) < 0 for name in _texts(wanted)):
    if remote.is_remote(root):
      raise DataError(f'{root} is not a whole copy of the folder it was copied from: copy it again')
    return None
  return manifest


def _texts(made: Mapping) -> list[str]:
  """Returns the files of the captions' vocabulary in a data set with these settings."""
  return [f'{FOLDER}/{name}' for name in FILES] if made['version'] > 1 else []


def _manifest(root: str) -> dict | None:
  """Returns the manifest that `write` has made, or None if there is none, or somebody else's.

  Raises:
    DataError: if it cannot be read.
  """
  path = os.path.join(root, MANIFEST)
  try:
    found = json.loads(remote.read(path))
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error}); remove it or name another folder') from error
  try:
    return found if found['made_by'] == MADE_BY and [*_parts(found['settings'])] else None
  except (KeyError, TypeError):
    return None


def _shards(root: str) -> list[str]:
  """Returns the names of the shards in a folder, of any data set."""
  if not remote.is_remote(root) and not os.path.isdir(root):
    return []
  return sorted(name for name in remote.listing(root) if tfrecord.SHARD.fullmatch(name))


def _strangers(root: str) -> list[str]:
  """Returns the shards in a folder that are not of the scenes that its manifest names."""
  manifest = _manifest(root)
  ours = [name for name, *_ in _parts(manifest['settings'])] if manifest else []
  return [name for name in _shards(root) if name not in ours]


def _require_ours(root: str) -> None:
  """Raises DataError unless scenes may be drawn here: the folder is missing, empty or our own.

  A folder with our manifest and other shards is not our own. Hidden files, such as our lock, and
  those that systems leave do not count; they stay.
  """
  there = _strangers(root)
  if not there and _manifest(root) is None and os.path.lexists(root):
    if not os.path.isdir(root):
      raise DataError(f'{root} is a file; name a folder')
    there = files.listing(root)
  if there:
    more = f' (and {len(there) - 1} more like it)' if len(there) > 1 else ''
    use = 'docs/data.md says how to make shards'
    if _shards(root):
      use = 'or train on it as it is: --config.synthetic=None'
    raise DataError(
      f'{root} holds {there[0]}{more}, which was not made by {MADE_BY}: scenes are drawn only into '
      f'an empty folder; name another one ({use})'
    )


def _size(path: str) -> int:
  """Returns the size of a file, or -1 if it is missing."""
  try:
    return remote.info(path)[0]
  except DataError:
    return -1


def _remove(root: str) -> None:
  """Removes the data set that the manifest names, and the temporary files of killed processes."""
  manifest = _manifest(root)
  if manifest is None:
    return
  names = [name for name, *_ in _parts(manifest['settings'])]
  texts, folder = _texts(manifest['settings']), os.path.join(root, FOLDER)
  for name in (*names, *(name + tfrecord.INDEX for name in names), *texts, MANIFEST):
    with contextlib.suppress(FileNotFoundError):
      os.remove(os.path.join(root, name))
  if texts and os.path.isdir(folder):
    files.sweep(folder, lambda name: name in FILES, alone=True)
    with contextlib.suppress(OSError):  # other people's files stay
      os.rmdir(folder)
  files.sweep(root, lambda name: name in (MANIFEST, *names), alone=True)


@contextlib.contextmanager
def _locked(root: str) -> Iterator[None]:
  """Lets one process write at a time. A file system without locks is not locked."""
  lock = files.Lock(os.path.join(root, LOCK))

  def wait(holder: str) -> None:
    print(
      f'{root}: another run is drawing the same scenes ({holder}); waiting for it', file=sys.stderr
    )

  try:
    os.makedirs(root, exist_ok=True)
    lock.acquire(busy=wait)
  except OSError as error:
    if error.errno not in files.NO_LOCKS:
      raise DataError(
        f'{root}: cannot be written ({error.strerror}); name another folder'
      ) from error
  try:
    yield
  finally:
    lock.release()


# The benchmark.


def bench(
  n: int,
  *,
  seed: int,
  size: int,
  exemplar_size: int,
  truths: int | None = None,
  scene_size=GRID,
  exemplar_pad=2,
  version=1,
  kind='look',
) -> Iterator[dict]:
  """Yields held-out edits with their ground truth; edit number i depends only on (seed, kind, i).

  An edit is dict(source uint8 [h w 3], mask uint8 [h w] (255 = repaint: the object's box and the
  reach of its shadow), exemplar uint8 [s s 3], truths uint8 [truths h w 3], answer). The exemplar
  shows the look of truths[answer] in another scene, cut as in training. The source shows a look of
  its own, so only the exemplar gives the answer. exemplar_pad is in pixels of the drawn scene.
  Version 2 adds `phrase`, the answer in words.

  truths: their number; None: `count_of`. kind: how the truths differ, see KINDS.
  """
  drawn_by, truths = WORLDS[version], count_of(kind, truths, version)
  draw, most = drawn_by.draw, version  # bystanders of a scene
  for i in range(n):
    own = [] if kind == 'look' else [KINDS.index(kind)]
    rng = np.random.default_rng([seed, STREAMS['bench'], i, *own])
    scene, other = drawn_by.sample_scene(rng), drawn_by.sample_scene(rng)
    looks = _truths(rng, truths, version, kind)
    bystanders = tuple(drawn_by.sample_look(rng, held_out=True) for _ in range(2 * most))
    rest = bystanders[: len(scene.poses) - 1]
    other_rest = bystanders[most : most + len(other.poses) - 1]
    answer = int(rng.integers(truths))
    if kind != 'look':  # the first look is the held-out one
      looks[0], looks[answer] = looks[answer], looks[0]
    drawn = [crops.resize(draw(scene, (look, *rest), scene_size), size) for look in looks]
    place = draw(other, (looks[answer], *other_rest), scene_size)
    y0, x0, y1, x1 = (c * scene_size // GRID for c in other.poses[0].box)
    yield dict(
      source=drawn[truths],
      mask=_reach(scene.poses[0].box, size),
      exemplar=crops.exemplar(place, (x0, y0, x1, y1), exemplar_size, exemplar_pad),
      truths=np.stack(drawn[:truths]),
      answer=answer,
    ) | (dict(phrase=world.phrase(looks[answer])) if version > 1 else {})


def count_of(kind: str, truths: int | None = None, version=2) -> int:
  """Returns the number of truths of an edit: the given one, or 10, or one for each pattern.

  Raises:
    DataError: for an unknown kind, and for a number of truths out of range.
  """
  if kind not in KINDS:
    raise DataError(f'kind={kind}: use one of {", ".join(KINDS)}')
  if version == 1 and kind != 'look':
    raise DataError(f'kind={kind}: only scenes of version 2 have it, and these are of version 1')
  most = {'shape': len(world.SHAPES), 'pattern': len(world.PATTERNS) - 1}.get(kind, 1000)
  found = min(10, most) if truths is None else truths
  if not 2 <= found <= most:
    raise DataError(f'truths is {found}: it must be from 2 to {most} for kind={kind}')
  return found


def _truths(rng: np.random.Generator, truths: int, version: int, kind: str) -> list:
  """Returns the looks of the truths, and that of the source, which is independent of them."""
  sample = functools.partial(WORLDS[version].sample_look, rng, held_out=True)
  if version == 1:
    return [sample() for _ in range(truths + 1)]
  if kind in ('look', 'text'):
    found = {}  # by name: looks of one name differ too little to be told apart
    while len(found) < truths:
      look = sample()
      found.setdefault(world.phrase(look), look)
    return [*found.values(), sample()]
  own = sample()
  while kind == 'pattern' and own.pattern == 'plain':  # it has one colour
    own = sample()
  names = world.SHAPES if kind == 'shape' else world.PATTERNS[1:]
  others = rng.permutation([name for name in names if name != getattr(own, kind)])
  looks = [own, *(dataclasses.replace(own, **{kind: str(name)}) for name in others[: truths - 1])]
  return [*looks, sample()]


def texts(
  n: int, *, seed: int, size: int, truths: int | None = None, scene_size=GRID
) -> Iterator[dict]:
  """Yields held-out captions of one object; text number i depends only on (seed, i).

  A text is dict(caption, looks, answer, truth uint8 [h w 3]). The caption names looks[answer] and a
  ground; the truth is one drawing of it. The looks are held out from training.
  """
  truths = count_of('text', truths)
  for i in range(n):
    rng = np.random.default_rng([seed, STREAMS['bench'], i, KINDS.index('text')])
    scene = world.sample_scene(rng, most=1)
    looks = _truths(rng, truths, world.VERSION, 'text')[:truths]
    answer = int(rng.integers(truths))
    shown = (looks[answer],)
    yield dict(
      caption=world.caption(scene, shown),
      looks=looks,
      answer=answer,
      truth=crops.resize(world.draw(scene, shown, scene_size), size),
    )


def _reach(box: tuple[int, int, int, int], size: int) -> np.ndarray:
  """Returns the box and the reach of its shadow as a mask [size size]."""
  y0, x0, y1, x1 = (c / GRID for c in box)
  mask = np.zeros((size, size), np.uint8)
  top, left = (max(0, math.floor((c - scenes.MARGIN) * size)) for c in (y0, x0))
  mask[
    top : math.ceil((y1 + scenes.MARGIN) * size), left : math.ceil((x1 + scenes.MARGIN) * size)
  ] = 255
  return mask


def write_example(output: str, number: int, *, seed: int, size: int, version=1) -> None:
  """Writes held-out edit `number` as image.png, mask.png and exemplar.png."""
  if seed < 0 or not 8 <= size <= 4096:
    raise DataError(f'seed {seed} must be at least 0, and size {size} between 8 and 4096')
  scene = -(-size // GRID) * GRID  # drawn at a multiple of the grid, then resized
  edits = bench(
    number + 1, seed=seed, size=size, exemplar_size=size, scene_size=scene, version=version
  )
  *_, edit = edits
  contents = {}
  for name, key in (('image', 'source'), ('mask', 'mask'), ('exemplar', 'exemplar')):
    pixels = edit[key]
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    contents[os.path.join(output, f'{name}.png')] = cv2.imencode('.png', pixels)[1].tobytes()
  for path, data in contents.items():
    if os.path.lexists(path) and (not os.path.isfile(path) or remote.read(path) != data):
      raise DataError(f'{path} is there already and another picture: name another folder')
  os.makedirs(output, exist_ok=True)
  files.write_all(contents)


# The door.

FLAGS = (
  ('output', doors.REQUIRED, 'folder to write to'),
  ('version', settings()['version'], 'of the drawings: 1 abstract shapes, 2 subjects and captions'),
  ('scenes', settings()['scenes'], 'number of training scenes'),
  ('val_scenes', settings()['val_scenes'], 'number of validation scenes'),
  ('seed', settings()['seed'], 'seed of all random numbers'),
  ('size', settings()['size'], 'side of a scene in pixels'),
  ('shards', settings()['shards'], 'number of files of the training split'),
  ('without', '', 'subjects that the training split lacks, with commas; version 2 only'),
  ('processes', os.cpu_count() or 1, 'number of processes that draw'),
  doors.Flag(
    'example', None, 'write held-out edit number N as image.png, mask.png and exemplar.png instead',
    int, 0,
  ),
)  # fmt: skip


def main(output: str, example: int | None = None, processes=1, **kwargs) -> None:
  """Draws the scenes, unless the folder holds them already, or one example."""
  if processes < 1:
    raise DataError(f'processes={processes}: must be at least 1')
  if example is not None:
    chosen = {name: kwargs[name] for name in ('seed', 'size', 'version') if name in kwargs}
    write_example(output, example, **chosen)
    print(f'{output}: image.png, mask.png and exemplar.png of held-out edit {example}')
    return
  worth = kwargs['scenes'] // SCENES_PER_PROCESS
  manifest = ensure(output, max(1, min(processes, worth)), **kwargs)
  counts = [file['records'] for file in manifest['files'].values()]
  print(f'{output}: {sum(counts)} scenes in {len(counts)} shards')


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
