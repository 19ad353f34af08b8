"""Bad configs, indexes, recipes and lists around good weights and pictures; makers as elsewhere.

The first file that a maker gives is the damaged one. Its door finds the folder or file to open by
its place: everything lies in a folder `w`.
"""

import csv
import functools
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, PngImagePlugin

from exedit import images
from exedit import paint_by_example as pbe
from exedit.editing import edits, framing, recipe, session
from exedit.runtime.errors import UserError
from exedit.weights import find
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import save_tensors
from tests import released, small
from tests.mutations import mutated, pick

VALUES = (
  *(None, True, False, 0, 1, -1, 2, 3, 8, 64, 10**6, 2**31, 2**63, 10**30, 10**400, -(2**63)),
  *(0.0, 0.5, -2.5, 1e-300, 1e308, float('nan'), float('inf'), -float('inf')),
  *('', 'abc', 'silu', '..', '/', '\0', '\n', '\ud800', 'a' * 5000, '7', 'null', 'CrossAttn{}'),
  *([], [1], [1, 2], [0, 0], ['a'], [None, 3], [[1]], [16, 'x'], [1] * 100, [10**9, 10**9]),
  *({}, {'a': 1}, {'': None}, {'sha256': 3}, {'model': {}}),
)
YAML = dict(
  model=dict(
    params=dict(
      linear_start=0.00085,
      linear_end=0.012,
      timesteps=1000,
      scale_factor=0.2,
      parameterization='eps',
      unet_config=dict(params=dict(num_heads=2, use_spatial_transformer=True, image_size=32)),
      first_stage_config=dict(params=dict(ddconfig=dict(double_z=True, ch_mult=[1, 2]))),
    )
  )
)
ALIASES = b'a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a]\nmodel: [*b,*b,*b,*b,*b]\n'


# Damage


def places(value, way=()):
  """The way to every value inside of a JSON value."""
  if not isinstance(value, (dict, list)):
    return
  for key, part in value.items() if isinstance(value, dict) else enumerate(value):
    yield (*way, key)
    yield from places(part, (*way, key))


def changed(rng, value):
  """A copy with a few entries replaced, taken away, added, or put in each other's place."""
  value = json.loads(json.dumps(value))
  for _ in range(pick(rng, [1, 1, 1, 2, 4])):
    if not (ways := list(places(value))):
      break
    *way, last = pick(rng, ways)
    inside = functools.reduce(lambda part, key: part[key], way, value)
    kind = pick(rng, ['replace', 'replace', 'replace', 'remove', 'add', 'copy'])
    if kind == 'remove':
      del inside[last]
    elif kind == 'add' and isinstance(inside, dict):
      inside[pick(rng, ['x', '', 'sha256', 'dtype', 'num_steps', 'a\nb'])] = pick(rng, VALUES)
    elif kind == 'copy':
      other = functools.reduce(lambda part, key: part[key], pick(rng, ways), value)
      inside[last] = json.loads(json.dumps(other))
    else:
      inside[last] = pick(rng, VALUES)
  return value


def damaged_text(rng, value, write=json.dumps) -> bytes:
  """A value with other entries, or its text with other bytes, or another text altogether."""
  kind = pick(rng, ['entries'] * 6 + ['bytes', 'bytes', 'other'])
  if kind == 'entries':
    return write(changed(rng, value)).encode('utf-8', 'surrogatepass')
  if kind == 'bytes':
    return mutated(rng, write(value).encode(), write(value).encode()[::-1])
  others = (b'', b'null', b'[]', b'7', b'"a"', b'{}', b'\xff\xfe{}', b'\0' * 50, b'[' * 50_000)
  others += (b'{"a":' * 50_000, b'9' * 50_000, b' ' * 10**6, b'{"a": 1, "a": 2}', ALIASES)
  return pick(rng, [*others, rng.bytes(200)])


@functools.cache
def sound(kind: str) -> dict[str, bytes]:
  """The files of a good folder of this kind, by their paths."""
  with tempfile.TemporaryDirectory() as name:
    top = Path(name) / 'w'
    if kind == 'pipeline':
      released.write_pipeline(top)
    elif kind == 'transformers':
      released.write_clip(top)
    elif kind == 'exported':
      released.export(top)
    elif kind == 'workdir':
      small.workdir(top, [1])
    else:
      top.mkdir()
      released.write_checkpoint(top / 'o.safetensors')
    files = sorted(path for path in top.rglob('*') if path.is_file())
    return {str(path.relative_to(top.parent)): path.read_bytes() for path in files}


def folder(rng, canary, kind):
  """A folder of weights, one of whose JSON files is damaged, in a workdir also any small file."""
  files = dict(sound(kind))
  small_ones = [f for f, data in files.items() if kind == 'workdir' and len(data) < 10_000]
  file = pick(rng, [f for f in files if f.endswith('.json')] + small_ones[:2])
  data = files.pop(file)
  if rng.random() < 0.05:  # half a folder
    return {pick(rng, list(files)): b'', **{f: d for f, d in files.items() if rng.random() < 0.8}}
  text = damaged_text(rng, json.loads(data)) if file.endswith('.json') else mutated(rng, data)
  return {file: text, **files}


def index(rng, canary):
  """A pipeline with its UNet in two shards, and their index damaged."""
  files = dict(sound('pipeline'))
  stem = 'w/unet/diffusion_pytorch_model'
  files.pop(f'{stem}.safetensors')
  halves, where = shards()
  files |= {f'w/unet/{name}': data for name, data in halves.items()}
  text = damaged_text(rng, dict(metadata=dict(total_size=1), weight_map=where))
  return {f'{stem}.safetensors.index.json': text, **files}


@functools.cache
def shards() -> tuple[dict[str, bytes], dict[str, str]]:
  with tempfile.TemporaryDirectory() as name:
    whole = Path(name) / 'a.safetensors'
    whole.write_bytes(sound('pipeline')['w/unet/diffusion_pytorch_model.safetensors'])
    tensors = open_tensors(whole)
    where = {label: f'u-{i % 2}.safetensors' for i, label in enumerate(tensors)}
    for shard in set(where.values()):
      save_tensors(
        Path(name) / shard, {n: t.read() for n, t in tensors.items() if where[n] == shard}
      )
    return {shard: (Path(name) / shard).read_bytes() for shard in set(where.values())}, where


def beside(rng, canary):
  """An original checkpoint with a damaged .yaml beside it."""
  write = lambda value: yaml.safe_dump(value, allow_unicode=True)
  return {'w/o.yaml': damaged_text(rng, YAML, write), **sound('original')}


def note(rng, canary):
  """An original checkpoint of ours with a damaged note in its header."""
  told = dict(model=pbe.complete(released.SMALL), data=dict(size=32), edit=dict(steps=3))
  text = damaged_text(rng, told).decode('utf-8', 'replace')
  data = sound('original')['w/o.safetensors']
  length = int.from_bytes(data[:8], 'little')
  header = dict(json.loads(data[8 : 8 + length]), __metadata__=dict(exedit=text))
  head = json.dumps(header).encode()
  return {'w/o.safetensors': len(head).to_bytes(8, 'little') + head + data[8 + length :]}


# Recipes and lists


@functools.cache
def pictures() -> dict[str, bytes]:
  """A photo, its mask, an exemplar with its own, and a mask that shows nothing."""
  files = {}
  y, x = np.mgrid[:24, :40]
  kinds = dict(
    a=np.stack([6 * x, 9 * y, x + y], -1),
    m=255 * ((y > 8) & (x > 9) & (y < 16)),
    e=np.stack([6 * x, 9 * y, x + y], -1)[:12, :10],
    s=255 * (y > 2)[:12, :10],
    black=0 * x,
  )
  for name, pixels in kinds.items():
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, 'PNG')
    files[f'w/{name}.png'] = buffer.getvalue()
  return files


@functools.cache
def told() -> dict:
  """A recipe as JSON."""
  sha = 'a' * 64
  whole = recipe.Recipe(
    weights=dict(source='tiny', which='ema', revision=None, step=3, digest=sha),
    inputs={n: dict(path=f'{n[0]}.png', sha256=sha) for n in ('image', 'mask', 'exemplar')},
    settings=edits.Settings(steps=50, scale=5.0, sampler='plms'),
    precision='float32',
    frame=framing.Frame(0, 0, 24, 40, (24, 40)),
    batch=1,
    versions=dict(jax='0.10', python='3.11'),
    output=dict(ending='.png', height=24, width=40, channels=3, sha256=sha),
  )
  return json.loads(whole.text())


def recipe_json(rng, canary):
  return {'w/out.json': damaged_text(rng, told())}


def recipe_png(rng, canary):
  """A damaged recipe in the metadata of a PNG, or a damaged PNG around a sound one."""
  text = PngImagePlugin.PngInfo()
  good = json.dumps(told()).encode()
  whole = rng.random() < 0.7
  words = (damaged_text(rng, told()) if whole else good).decode('utf-8', 'replace')
  text.add_itxt(images.TEXT, words, zip=bool(rng.random() < 0.3))
  buffer = io.BytesIO()
  Image.new('RGB', (40, 24)).save(buffer, 'PNG', pnginfo=text)
  data = buffer.getvalue()
  return {'w/out.png': data if whole else mutated(rng, data)}


CELLS = (
  *('a.png', 'm.png', 'e.png', 's.png', 'black.png', 'none.png', '.', '..', '/', '/dev/null'),
  *('a' * 300, 'a/' * 3000, '\0', '\ud800', '\n', 'out.png', 'b.webp', 'c.gif', 'x/y.jpg', ''),
  *('1', '-1', '2.5', 'nan', '1e400', '9' * 5000, 'true', 'auto', 'plms', 'None', '１２'),
)


def _rows(rng) -> list[dict]:
  """Edits, most of which could be made."""
  rows = []
  for i in range(int(rng.integers(1, 8))):
    row = dict(image='a.png', mask='m.png', exemplar='e.png', output=f'{i}.png', seed=i)
    row |= pick(rng, [{}, dict(exemplar_mask='s.png'), dict(scale=3, paste=False, steps=5)])
    rows.append(row)
  return rows


def list_jsonl(rng, canary):
  """A list with other entries, with other bytes, or with other things on its lines."""
  rows = _rows(rng)
  for row in rows:
    if rng.random() < 0.5:
      row[pick(rng, [*row, 'steps', 'zoom', 'feather', 'x', ''])] = pick(rng, [*CELLS, *VALUES])
  lines = [json.dumps(row).encode() for row in rows]
  if rng.random() < 0.3:
    lines[int(rng.integers(len(lines)))] = damaged_text(rng, rows[0])
  text = pick(rng, [b'\n', b'\r\n', b'\n\n', b'\r']).join(lines)
  return {'w/list.jsonl': mutated(rng, text) if rng.random() < 0.3 else text, **pictures()}


def list_csv(rng, canary):
  """The same as a table, quotes and columns wrong too."""
  rows = _rows(rng)
  names = [*dict.fromkeys(name for row in rows for name in row)]
  if rng.random() < 0.3:
    names[int(rng.integers(len(names)))] = pick(rng, ['x', '', 'image', 'Image', 'steps', '\0'])
  buffer = io.StringIO()
  table = csv.writer(buffer, quoting=pick(rng, [csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
  table.writerow(names)
  for row in rows:
    cells = [pick(rng, CELLS) if rng.random() < 0.1 else row.get(name, '') for name in names]
    table.writerow(cells[: len(cells) - pick(rng, [0, 0, 0, 1])])
  text = buffer.getvalue().encode('utf-8', 'surrogatepass')
  return {'w/list.csv': mutated(rng, text) if rng.random() < 0.4 else text, **pictures()}


def list_folder(rng, canary):
  """image/, mask/, exemplar/ and exemplar_mask/ with pictures lost, doubled, damaged, exchanged."""
  files = {}
  for stem in ('one', 'two', 'three'):
    for name in edits.INPUTS:
      own = pictures()[f'w/{dict(zip(edits.INPUTS, "ames"))[name]}.png']
      data = pick(rng, [own] * 12 + [mutated(rng, own), b'', pictures()['w/black.png']])
      ending = pick(rng, ['png'] * 9 + ['jpg', 'PNG', '', 'txt'])
      if rng.random() < 0.95:
        files[f'w/{name}/{stem}.{ending}'] = data
  first = pick(rng, list(files))
  return {first: files.pop(first), **files}


# Doors


def _top(path: Path) -> Path:
  return next(parent for parent in path.parents if parent.name == 'w')


def open_folder(path: Path) -> None:
  """Everything that an edit does before the network runs."""
  made = session.Session(str(_top(path)))
  made.settings()
  found = shapes(json.dumps(made.config['model']))
  if isinstance(found, str):
    raise UserError(f'{made.found.where}: {found}')
  made.found.fit(found)
  for tensor in list(made.found.tensors.values())[:2]:
    tensor.read()


@functools.cache
def shapes(model: str) -> dict | str:
  """Of the parameters, or why not; most of the damage leaves the network as it was."""
  try:
    return pbe.abstract(json.loads(model), 'the config')[1]
  except UserError as error:
    return str(error)


def open_checkpoint(path: Path) -> None:
  """An original checkpoint of small networks, whose norms' groups no file says."""
  find.weights(path.with_suffix('.safetensors'), groups=4)


def open_clip(path: Path) -> None:
  """A CLIP tower, as a training takes it."""
  find.clip_tower(_top(path)).fit()


def open_recipe(path: Path) -> None:
  """A recipe: what was read can be told again."""
  found = recipe.read(str(path))
  assert recipe.parse(json.loads(found.text())) == found
  recipe.locate(found.weights['source'], str(path.parent))


def open_list(path: Path) -> None:
  """A list as the door checks it, with all faults told."""
  place = str(path if path.suffix in ('.jsonl', '.csv') else _top(path))
  own = edits.Settings(steps=20, scale=3.0, sampler='ddim')
  found, faults = edits.read(place, str(_top(path) / 'out'), own, 999)
  faults += edits.clashes(edits.samples(found, 2), [place], True)
  jobs, more = edits.plan_all(found, 16)
  assert len(jobs) + len(more) == len(found)
  for fault in (faults := [*faults, *more]):
    if '\n' in str(fault) or len(str(fault)) > 2000:
      raise AssertionError(f'no line: {str(fault)[:200]!r}')
  edits.refuse(faults, place, len(found), 'Mend them')


FOLDERS = {
  'config, diffusers': functools.partial(folder, kind='pipeline'),
  'config, exported': functools.partial(folder, kind='exported'),
  'config, workdir': functools.partial(folder, kind='workdir'),
  'index, in a pipeline': index,
  'note in a checkpoint': note,
}
CHECKPOINTS = {'yaml beside a checkpoint': beside}
CLIPS = {'config, transformers': functools.partial(folder, kind='transformers')}
RECIPES = {'recipe, JSON': recipe_json, 'recipe, PNG': recipe_png}
LISTS = {'list, JSON lines': list_jsonl, 'list, CSV': list_csv, 'list, folder': list_folder}
DOORS = {
  open_folder: FOLDERS,
  open_checkpoint: CHECKPOINTS,
  open_clip: CLIPS,
  open_recipe: RECIPES,
  open_list: LISTS,
}
