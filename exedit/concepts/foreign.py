"""Concepts in the layouts of others, read and written.

`adobe`: Custom Diffusion's delta.bin for diffusers. `compressed`: the same with factors u, v of the
differences. `original`: its delta*.ckpt for the code of CompVis. `diffusers`: the folder of its
example of Custom Diffusion. `comfyui`, `kohya`: a folder with differences or a LoRA, and the rows
of the words beside it. `embedding`: the rows of one word, as textual inversion writes them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from exedit import latent_diffusion
from exedit.concepts.concept import Concept
from exedit.models.unet import UNet
from exedit.runtime import files
from exedit.runtime.errors import UserError
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.tensor import Tensor, quoted
from exedit.weights.formats.torch_saving import save_tree
from exedit.weights.found import Weights
from exedit.weights.layouts.original_config import NET
from exedit.weights.tables import unet
from exedit.weights.translate import Row, to_ours, to_theirs, under

ENDINGS = ('.safetensors', '.bin', '.pt', '.pth', '.ckpt')
DIFFUSERS: list[Row] = under('', 'unet.', unet.TABLE)
CUSTOM = re.compile(r'\.attn2\.processor\.(to_[qkv]|to_out)_custom_diffusion\.')
FLAT = 'lora_unet_'  # the beginning of ComfyUI's and kohya's names
WHOLE = 'pytorch_custom_diffusion_weights.bin'  # diffusers' name
LORA = 'lora.safetensors'
SHARE = 0.6  # of the sum of the singular values that adobe's compression keeps
RANK = 32  # of a LoRA


class Parts(NamedTuple):
  """What a file holds, by its own names without what only says the layout.

  kernels: whole arrays. changes: differences from the base. rows: by the word, [width] or several.
  """

  kernels: dict[str, Tensor]
  changes: dict[str, np.ndarray]
  rows: dict[str, Tensor]


# Reading


def read(file: Path, base: Weights | None = None) -> Concept:
  """The concept in a file of another layout.

  base: the weights that it belongs to, which differences and CompVis' names need.
  Raises:
    UserError: for an entry that no concept has, and without a base that is needed.
  """
  tensors = open_tensors(file, nested=True)
  kind = _kind(tensors)
  parts = READERS[kind](tensors, file)
  if base is None and (parts.changes or kind == 'original'):
    raise UserError(f'{file} can be read only with the weights that it belongs to: name them too')
  table = ldm(base) if kind == 'original' and base is not None else DIFFUSERS
  if base is not None and kind == 'lora':
    parts = parts._replace(changes=_unflattened(parts.changes, base, file))
  kernels = to_ours(table, parts.kernels, where=str(file))
  arrays = {path: tensor.read() for path, tensor in kernels.items()}
  for path, change in to_ours(table, parts.changes, where=str(file)).items():
    if base is None or path not in base.tensors or base.tensors[path].shape != change.shape:
      raise UserError(f'{file} changes {path} {change.shape}, which its weights do not have')
    arrays[path] = base.tensors[path].read().astype(np.float32) + change
  return Concept(arrays, _rows(parts.rows))


def _kind(tensors: Mapping[str, Tensor]) -> str:
  """The layout of a file, by its names."""
  for kind, sign in (
    ('diffusers', '_custom_diffusion.'),
    ('original', NET),
    ('lora', FLAT),
    ('adobe', 'unet/'),
    ('adobe', 'modifier_token/'),
  ):
    if any(sign in name for name in tensors):
      return kind
  return 'embedding'


def _adobe(tensors: Mapping[str, Tensor], file: Path) -> Parts:
  rows = {n.split('/', 1)[1]: t for n, t in tensors.items() if n.startswith('modifier_token/')}
  rest = {n: t for n, t in tensors.items() if not n.startswith('modifier_token/')}
  _refuse((n for n in rest if not n.startswith('unet/')), file)
  return _factors({n.removeprefix('unet/'): t for n, t in rest.items()}, rows, file)


def _original(tensors: Mapping[str, Tensor], file: Path) -> Parts:
  named = {n.removeprefix('state_dict/'): t for n, t in tensors.items()}
  rows = named.pop('embed', None)
  if rows is not None and len(rows.shape) != 2:
    raise UserError(f'{file}: its entry embed has the shape {rows.shape}, not a row for each word')
  each = [] if rows is None else [*rows.read()]
  new = {f'<new{i + 1}>': Tensor(r.shape, r.dtype, lambda r=r: r) for i, r in enumerate(each)}
  _refuse((n for n in named if not n.startswith(NET)), file)
  return _factors(named, new, file)


def _factors(named: Mapping[str, Tensor], rows: dict[str, Tensor], file: Path) -> Parts:
  """Whole arrays, and the products of u and v under one name."""
  kernels = {name: tensor for name, tensor in named.items() if '/' not in name}
  changes = {}
  for name in dict.fromkeys(name.rpartition('/')[0] for name in named if '/' in name):
    u, v = (named.get(f'{name}/{part}') for part in 'uv')
    changes[name] = _product(u, v, name, file)
  _refuse((n for n in named if '/' in n and n[-2:] not in ('/u', '/v')), file)
  return Parts(kernels, changes, rows)


def _product(u: Tensor | None, v: Tensor | None, name: str, file: Path) -> np.ndarray:
  """u [out r] times v [r in], whose further axes have the length 1."""
  if u is None or v is None or min(len(u.shape), len(v.shape)) < 2:
    raise UserError(f'{file}: {quoted(name)} lacks one of its two factors')
  left, right = (t.read().astype(np.float32).reshape(t.shape[:2]) for t in (u, v))
  if left.shape[1] != right.shape[0]:
    raise UserError(f'{file}: the factors of {quoted(name)} are {u.shape} and {v.shape}')
  return left @ right


def _diffusers(tensors: Mapping[str, Tensor], file: Path) -> Parts:
  _refuse((name for name in tensors if not CUSTOM.search(name)), file)
  return Parts({CUSTOM.sub(r'.attn2.\1.', n): t for n, t in tensors.items()}, {}, {})


def _lora(tensors: Mapping[str, Tensor], file: Path) -> Parts:
  """ComfyUI's differences, `X.diff`, and kohya's factors, `X.lora_up.weight` and its like."""
  changes, left = {}, dict(tensors)
  for name, tensor in tensors.items():
    if name.endswith('.diff'):
      changes[name.removesuffix('.diff')] = left.pop(name).read().astype(np.float32)
    elif name.endswith('.lora_down.weight'):
      whole = name.removesuffix('.lora_down.weight')
      up, alpha = left.pop(f'{whole}.lora_up.weight', None), left.pop(f'{whole}.alpha', None)
      rank = left.pop(name).shape[0]
      scale = 1.0 if alpha is None else float(alpha.read().reshape(-1)[0]) / rank
      changes[whole] = np.float32(scale) * _product(up, tensor, whole, file)
  _refuse(left, file)
  return Parts({}, changes, {})


def _unflattened(
  changes: Mapping[str, np.ndarray], base: Weights, file: Path
) -> dict[str, np.ndarray]:
  """The changes by diffusers' names, of which ComfyUI and kohya replace the dots."""
  names = {_flat(name): name for name in to_theirs(DIFFUSERS, _kernels(base))}
  _refuse((name for name in changes if name not in names), file)
  return {names[name]: change for name, change in changes.items()}


def _flat(name: str) -> str:
  return FLAT + name.removesuffix('.weight').replace('.', '_')


def _kernels(base: Weights) -> dict[str, Tensor]:
  """The matrices of the UNet by their paths."""
  own = lambda name: name.startswith('unet.') and name.endswith('.kernel')
  return {name: t for name, t in base.tensors.items() if own(name) and len(t.shape) == 2}


def _embedding(tensors: Mapping[str, Tensor], file: Path) -> Parts:
  """diffusers' `{word: row}`, A1111's `string_to_param`, kohya's `emb_params`."""
  rows = {}
  for name, tensor in tensors.items():
    word = name.rpartition('/')[2]
    rows[file.stem if word in ('*', 'emb_params') else word] = tensor
  odd = (n for n, t in tensors.items() if len(t.shape) not in (1, 2) or t.dtype.kind not in 'fV')
  _refuse(odd, file)
  return Parts({}, {}, rows)


def _rows(found: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
  """A row for each word; more rows of a word X are those of X_1, X_2, ... (`Tokenizer`)."""
  rows = {}
  for word, tensor in found.items():
    array = tensor.read()
    for i, row in enumerate(array.reshape(-1, array.shape[-1])):
      rows[f'{word}_{i}' if i else word] = row
  return rows


def _refuse(names: Iterable[str], file: Path) -> None:
  """Raises UserError if there are entries that a concept cannot hold."""
  if odd := [*names]:
    raise UserError(
      f'{file} holds {len(odd)} entries that a concept does not have, such as {quoted(odd[0])}'
    )


READERS: dict[str, Callable[[Mapping[str, Tensor], Path], Parts]] = dict(
  adobe=_adobe,
  original=_original,
  diffusers=_diffusers,
  lora=_lora,
  embedding=_embedding,
)


# Writing


def write(path: Path, concept: Concept, layout: str, base: Weights, rank: int = RANK) -> str:
  """Writes a concept in another layout; returns a line on what was lost, or ''.

  path: a new file, or a new folder for the layouts in FOLDERS.
  rank: of kohya's LoRA.
  Raises:
    UserError: for a concept that the layout cannot hold, and a name with another ending.
  """
  if layout in ENDS and path.suffix not in ENDS[layout]:
    raise UserError(f'{path}: the layout {layout} is one {" or ".join(ENDS[layout])}; end it so')
  if odd := [n for n in concept.kernels if layout == 'embedding' or not n.startswith('unet.')]:
    raise UserError(f'the layout {layout} cannot hold {odd[0]}: choose another --layout')
  if layout in FOLDERS:
    _check_names(concept, layout)
  return WRITERS[layout](path, concept, base, rank)


def _check_names(concept: Concept, layout: str) -> None:
  """Raises UserError for words that cannot name files beside each other in a folder."""
  taken = {FOLDERS[layout].whole: ''}
  for word in concept.tokens:
    name = FOLDERS[layout].name(word)
    if name.startswith('.') or not name.isprintable() or '/' in name or '\\' in name:
      raise UserError(
        f'the word {quoted(word)} cannot name a file of the layout {layout}: choose another '
        '--layout, or name a lone word otherwise, as --concept=<new1>=PATH'
      )
    if name.lower() in taken:  # some file systems do not tell small letters from large ones
      other = taken[name.lower()]
      whose = f'as that of {quoted(other)}' if other else 'as the arrays have'
      raise UserError(
        f'the file of the word {quoted(word)} in the layout {layout} has the name {name}, {whose}: '
        'choose another --layout, or name a lone word otherwise, as --concept=<new1>=PATH'
      )
    taken[name.lower()] = word


def _write_adobe(path: Path, concept: Concept, base: Weights, rank: int) -> str:
  kernels = to_theirs(DIFFUSERS, concept.kernels)
  save_tree(path, dict(unet=kernels, modifier_token=concept.tokens))
  return ''


def _write_compressed(path: Path, concept: Concept, base: Weights, rank: int) -> str:
  changes = to_theirs(DIFFUSERS, _changes(concept, base))
  made = {name: factors(change, share=SHARE) for name, change in changes.items()}
  tree = {name: dict(u=u, v=v) for name, (u, v) in made.items()}
  save_tree(path, dict(unet=tree, modifier_token=concept.tokens))
  return _lost(changes, made)


def _write_original(path: Path, concept: Concept, base: Weights, rank: int) -> str:
  named: dict[str, Any] = to_theirs(ldm(base), concept.kernels)
  if concept.tokens:
    named['embed'] = np.stack([*concept.tokens.values()])
  save_tree(path, dict(state_dict=named))
  words = [f'{word} becomes <new{i + 1}>' for i, word in enumerate(concept.tokens)]
  return f'the original code numbers the words: {", ".join(words)}'


def _write_diffusers(path: Path, concept: Concept, base: Weights, rank: int) -> str:
  inner = r'.attn2.processor.\1_custom_diffusion.'
  named = to_theirs(DIFFUSERS, concept.kernels)
  if other := [n for n in named if not re.search(r'\.attn2\.to_', n)]:
    raise UserError(f'the layout diffusers cannot hold {other[0]}: choose another --layout')
  tree: dict[str, Any] = {re.sub(r'\.attn2\.(to_\w+)\.', inner, n): a for n, a in named.items()}
  ends = '.attn2.to_k.weight'  # the loader wants an entry for each self-attention too
  tree |= {f'{n.removesuffix(ends)}.attn1.processor': {} for n in named if n.endswith(ends)}
  with files.new_folder(path) as folder:
    if named:
      save_tree(folder / WHOLE, tree)
    for word, row in concept.tokens.items():
      save_tree(folder / FOLDERS['diffusers'].name(word), {word: row})
  return ''


def _write_comfyui(path: Path, concept: Concept, base: Weights, rank: int) -> str:
  changes = to_theirs(DIFFUSERS, _changes(concept, base))
  _write_flat(path, concept, {f'{_flat(name)}.diff': a for name, a in changes.items()})
  return ''


def _write_kohya(path: Path, concept: Concept, base: Weights, rank: int) -> str:
  changes = to_theirs(DIFFUSERS, _changes(concept, base))
  made, named = {n: factors(a, rank=rank) for n, a in changes.items()}, {}
  for name, (u, v) in made.items():
    named[f'{_flat(name)}.lora_up.weight'], named[f'{_flat(name)}.lora_down.weight'] = u, v
    named[f'{_flat(name)}.alpha'] = np.array(len(v), np.float32)
  _write_flat(path, concept, named)
  return f'rank {rank}: ' + _lost(changes, made)


def _write_flat(path: Path, concept: Concept, named: Mapping[str, np.ndarray]) -> None:
  """A folder with the arrays, and with each word's row in a file of the word's name."""
  with files.new_folder(path) as folder:
    if named:
      save_tensors(folder / LORA, named)
    for word, row in concept.tokens.items():
      save_tensors(folder / FOLDERS['kohya'].name(word), {word: row[None]})


def _write_embedding(path: Path, concept: Concept, base: Weights, rank: int) -> str:
  if not concept.tokens:
    raise UserError('the concept has no words, and an embedding is a word alone')
  first, *rest = concept.tokens
  if rest != [f'{first}_{i + 1}' for i in range(len(rest))]:
    raise UserError(
      f'the concept has the words {", ".join(concept.tokens)}, and an embedding is one: choose '
      'another --layout'
    )
  rows = np.stack([*concept.tokens.values()])
  if path.suffix == '.safetensors':
    save_tensors(path, {first: rows})
  else:
    save_tree(path, {first: rows})
  return ''


def _changes(concept: Concept, base: Weights) -> dict[str, np.ndarray]:
  """The differences from the base, by our paths."""
  if other := [name for name, array in concept.kernels.items() if array.ndim != 2]:
    raise UserError(f'{other[0]} is no matrix, and this layout holds matrices alone')
  plain = lambda path: base.tensors[path].read().astype(np.float32)
  return {path: np.float32(array) - plain(path) for path, array in concept.kernels.items()}


def factors(
  change: np.ndarray, share: float | None = None, rank: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """u [out r] and v [r in], whose product is the best approximation of its rank.

  share: of the sum of the singular values that r reaches; else r is `rank`, or less if that is all.
  """
  u, s, v = np.linalg.svd(change.astype(np.float64), full_matrices=False)
  if share is not None:
    rank = 1 + int(np.searchsorted(np.cumsum(s), share * s.sum()))
  u = u[:, :rank] * s[:rank]
  return u.astype(np.float32), np.ascontiguousarray(v[:rank], np.float32)


def _lost(changes: Mapping[str, np.ndarray], made: Mapping[str, tuple]) -> str:
  """How far the products are from the differences, in words."""
  square = lambda arrays: sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays)
  off = square(change - made[name][0] @ made[name][1] for name, change in changes.items())
  share = (off / (square(changes.values()) or 1.0)) ** 0.5
  return f'the differences from the base are {share:.1%} off'


def ldm(base: Weights) -> list[Row]:
  """The table of LDM's names, which depend on the sizes of the UNet."""
  sizes = latent_diffusion.complete(base.config['model'], dict(unet=UNet))['unet']
  rows = unet.original(len(sizes['mult']), sizes['layers'], sizes['attention_levels'])
  return under(NET, 'unet.', rows)


class Folder(NamedTuple):
  """The files of a layout that is a folder: that of the arrays, and that of each word."""

  whole: str
  name: Callable[[str], str]


_stripped = Folder(LORA, lambda word: f'{word.strip("<>")}.safetensors')
FOLDERS = dict(
  diffusers=Folder(WHOLE, lambda word: f'{word}.bin'), comfyui=_stripped, kohya=_stripped
)
ENDS = dict(
  adobe=('.bin',),
  compressed=('.bin',),
  original=('.ckpt', '.pt'),
  embedding=('.safetensors', '.bin', '.pt'),
)
WRITERS: dict[str, Callable[[Path, Concept, Weights, int], str]] = dict(
  adobe=_write_adobe,
  compressed=_write_compressed,
  original=_write_original,
  diffusers=_write_diffusers,
  comfyui=_write_comfyui,
  kohya=_write_kohya,
  embedding=_write_embedding,
)
