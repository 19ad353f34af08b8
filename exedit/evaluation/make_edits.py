"""Makes the edits of a benchmark with weights, each of them once.

The random numbers of an edit depend only on (seed, id), not on its batch, device or process. The
network sees the whole source at the size that the weights were trained on, as `sample --zoom=off`
shows a photo; a source of that size is shown unchanged.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from exedit import images, systems
from exedit.editing import framing, photo
from exedit.editing.engine import Engine, Result, Work, share_out
from exedit.editing.settings import saved_evaluations
from exedit.evaluation.benchmark import Edit
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.runtime import files, lists, processes, progress
from exedit.runtime.errors import UserError
from exedit.weights.found import Weights

PER_DEVICE = 8
PICTURES, CLAIM = 'results', 'sampling.json'
KINDS = ('photo', 'mask', 'picture', 'cutout')  # of inputs that a benchmark has or can leave out


def edit_settings(found: Weights, texts: bool = False, **given: Any) -> dict[str, Any]:
  """Return the settings of `System.edit`: those given, else the weights' own, else the defaults.

  texts: whether there is a prompt for each edit.

  Raises:
    UserError: for a setting that is not allowed or that the system does not have, for prompts that
      it does not take, and for a system that edits from other inputs than a source, a mask, an
      exemplar and perhaps a prompt.
  """
  system = systems.editing(found)
  known = systems.network_settings(system.settings())
  for name in given:
    if given[name] is not None and name not in known:
      raise UserError(
        f'{name} is {given[name]}, but {system.name} has no such setting: leave it out'
      )
  if texts and not system.inputs_of('text'):
    raise UserError(f'prompts are given, but {system.name} takes no text: leave them out')
  kinds = (*KINDS, 'text') if texts else KINDS
  if others := [
    entry.name for entry in system.inputs if entry.kind not in kinds and entry.required
  ]:
    raise UserError(
      f'{found.where} edits from {", ".join(others)}, but a benchmark has only sources, masks and'
      ' exemplars: use weights of another system, or give config.prompts of configs/coco_ee.py'
    )
  return systems.edit_settings(system, found.config, found.where, **given)


def to_record(found: Weights, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Return the settings that results name: the common ones, and others unless they are defaults."""
  fields = {field.name: field for field in dataclasses.fields(systems.editing(found).settings)}
  return {
    name: value
    for name, value in settings.items()
    if name in ('steps', 'scale', 'sampler') or value != fields[name].default
  }


def named(found: Weights) -> dict[str, Any]:
  """Return what results say about the weights: where they are, their step, and their digests."""
  concepts = dict(concepts=[*found.concepts]) if found.concepts else {}
  return dict(path=found.where, step=found.step, sha256=found.digest(), **concepts)


def saved(found: Weights, settings: Mapping[str, Any], photo: bool = True) -> dict[str, str]:
  """Return dict(evaluations=a line) if a guidance interval saves evaluations, or {}.

  photo: see `saved_evaluations`.
  """
  line = saved_evaluations(settings, systems.most_steps(found.config), photo)
  return dict(evaluations=line) if line else {}


def read_prompts(path: str, template: str, ids: Iterable[int]) -> dict[int, str]:
  """The prompt of every edit, from a .csv or .jsonl list with `id`, and `prompt` or `category`.

  template: makes the prompt of a category, such as 'a photo of {category}'.

  Raises:
    UserError: for a list that cannot be read, lacks an edit or has it twice, and for a template
      without category.
  """
  if '{category}' not in template:
    raise UserError(f"config.prompt is {template!r:.60}: write it as 'a photo of {{category}}'")
  found = {}
  for where, row in lists.read(path, ('id',), ('id',))[0]:
    if isinstance(row, UserError):
      raise UserError(f'{path} {where}: {row}')
    text, category = (str(row.get(name) or '').strip() for name in ('prompt', 'category'))
    try:
      number = int(str(row.get('id', '')))
    except ValueError:
      raise UserError(
        f'{path} {where}: id is {row.get("id")!r:.40}: it must be a whole number, such as 3'
      ) from None
    if number in found:
      raise UserError(f'{path} {where}: edit {number} has a row already: leave one of them out')
    if not text and not category:
      raise UserError(f'{path} {where}: edit {number} has neither prompt nor category')
    found[number] = text or template.replace('{category}', category)
  wanted = [*ids]
  if missing := [number for number in wanted if number not in found]:
    raise UserError(
      f'{path} has no prompt for {len(missing)} of {len(wanted)} edits, the first is {missing[0]}'
    )
  return {number: found[number] for number in wanted}


def frames(found: Weights, edits: Sequence[Edit]) -> dict[int, framing.Frame]:
  """What the network sees of each source, by the edit's id. Raises UserError if one is too long."""
  trained = systems.trained_on(systems.editing(found), found.config, 'size')
  return {edit.id: framing.whole(*edit.size, trained) for edit in edits}


def scaled(found: Weights, edits: Sequence[Edit]) -> dict[str, int]:
  """Return dict(size=the network's) if it sees some source at another size than its own, or {}."""
  shown = frames(found, edits)
  sizes = {min(shown[edit.id].size) for edit in edits if shown[edit.id].size != edit.size}
  return dict(size=sizes.pop()) if sizes else {}


def folder(output: str | os.PathLike) -> str:
  """The folder of an evaluation's pictures, {id:012d}.png, as in PbE's evaluation code."""
  return os.path.join(output, PICTURES)


def claim(output: str, made_with: dict[str, Any]) -> None:
  """Record what the pictures are made with. Only one process calls it, before any picture is made.

  Raises:
    UserError: if there are pictures that were made with something else.
  """
  path, pictures = os.path.join(output, CLAIM), folder(output)
  if os.path.exists(path):
    _compare(path, made_with)
  elif os.path.isdir(pictures) and files.listing(pictures):
    raise UserError(
      f'{pictures} holds pictures, but {output} has no {CLAIM} that says what made them: name'
      ' another --output, or score them with --images'
    )
  else:
    os.makedirs(pictures, exist_ok=True)
    files.write_json(path, made_with)
  for name in os.listdir(pictures):
    if name.endswith('.tmp'):  # a killed run left it half-written
      os.remove(os.path.join(pictures, name))


def _compare(path, made_with):
  try:
    with open(path, encoding='utf-8') as file:
      known = dict(json.load(file))
  except (OSError, ValueError, TypeError):
    raise UserError(f'{path} cannot be read: name another --output') from None
  now = json.loads(json.dumps(made_with))
  for name in {**known, **now}:  # a setting at its default may be missing
    if known.get(name) != now.get(name):
      raise UserError(
        f'{os.path.dirname(path)} holds edits made with {name} {known.get(name)!r}, now it is'
        f' {now.get(name)!r}: name another --output, because the two are not mixed'
      )


def make_missing(
  found: Weights,
  bench: Bench,
  edits: Sequence[Edit],
  output: str,
  *,
  seed: int,
  batch_size: int | None,
  precision: str | None,
  paste: bool,
  truncate: bool = False,
  texts: Mapping[int, Mapping[str, np.ndarray]] = MappingProxyType({}),
  settings: Mapping[str, Any],
  say: Callable[[str], None] = print,
) -> int:
  """Make this process's share of the pictures that `folder(output)` lacks; return their number.

  Args:
    bench: the benchmark, with its exemplars at the size that the weights' network takes.
    batch_size: for all devices of this process together; None: 8 per device.
    precision: in which the networks compute; None: the weights' own.
    paste: keep the source's own bytes where the mask is below 128. False: the raw decode.
    truncate: round the pixels down to bytes, as the released code does.
    texts: see `text_inputs`.
    settings: see `edit_settings`.
  Raises:
    UserError: for a result that is not finite.
  """
  there = set(files.listing(folder(output)))
  wanted = lambda edit: edit.name not in there
  ours = processes.own_share(edits)
  left = sum(map(wanted, ours))
  if not left:
    return 0
  shown = frames(found, ours)
  if size := scaled(found, ours).get('size'):
    say(
      f'the network sees the sources with their shorter side at {size} pixels, as the weights were'
      " trained; its results are scaled back to the sources' size"
    )
  devices, rows, notes = share_out(batch_size, PER_DEVICE, len(ours))
  for note in notes:
    say(note)
  engine = Engine(systems.editing(found), systems.load(found, dtype=precision), devices)

  def read(edit):
    own = bench[edit.position]
    source, mask, exemplar = (own[kind] for kind in ('source', 'mask', 'exemplar'))
    arrays = network_inputs(engine.system, source, mask, exemplar, shown[edit.id])
    return arrays | texts.get(edit.id, {}), own

  def write(result: Result):
    own, name = result.kept, result.item.name
    if not np.isfinite(result.raw).all():
      raise UserError(f'{name} is not written: the result is not finite; are the weights sound?')
    pixels = finished(result.raw, own, shown[result.item.id], paste, truncate)
    images.save(pixels, os.path.join(folder(output), name))

  # Sizes in a fixed order, so that a continued run makes the same batches.
  in_order = sorted(ours, key=lambda edit: edit.size)
  works = [Work(edit, shown[edit.id].size, settings) for edit in in_order]
  batches = engine.batches(works, rows, wanted)
  done, total, process = len(ours) - left, len(ours), jax.process_index()
  with progress.bar(what='edits', initial=done, total=total, unit='edit', process=process) as bar:
    for made in engine.run(batches, read, write, key=lambda edit: edit_key(seed, edit.id)):
      bar.update(len(made))
  return left


def text_inputs(
  found: Weights, prompts: Mapping[int, str], say: Callable[[str], None] = print
) -> dict[int, dict[str, Int[np.ndarray, ' n']]]:
  """Return the tokens of each prompt by its edit's id, under the name of the system's input.

  It says how many prompts are longer than the weights read.

  Raises:
    UserError: for a prompt that the weights cannot read; names the edit.
  """
  system = systems.editing(found)
  names = [entry.name for entry in system.inputs_of('text')]  # the prompt is the first
  if not names or not prompts or system.tokenizer is None:
    return {}
  spell, tokens, cut = system.tokenizer(found), {}, {}
  for number, prompt in prompts.items():
    try:
      tokens[number] = {names[0]: spell(prompt)}
    except UserError as error:
      raise UserError(f'the prompt of edit {number}: {error}') from None
    if rest := spell.cut(prompt):
      cut[number] = rest
  for number, rest in [*cut.items()][:1]:
    say(
      f'{len(cut)} of {len(prompts)} prompts are too long for the text tower, which does not see '
      f'their ends: of edit {number} {rest!r:.80}'
    )
  return tokens


def network_inputs(
  system: systems.System,
  source: UInt8[np.ndarray, 'h w 3'],
  mask: UInt8[np.ndarray, 'h w'],
  exemplar: UInt8[np.ndarray, 's t 3'],
  frame: framing.Frame | None = None,
) -> dict[str, np.ndarray]:
  """Return the arrays of `System.edit` for one edit of a benchmark, as the system names them.

  frame: of the whole source; None: at its own size. A mask keeps its grey pixels at that size.
  """
  if frame is None or frame.size == mask.shape:
    seen, region = images.from_uint8(source), np.float32(mask[..., None]) / np.float32(255)
  else:
    seen, region = framing.cut(frame, source), framing.cut_mask(frame, mask >= 128)
  return photo.by_kind(system.inputs, photo=seen, mask=region, picture=images.from_uint8(exemplar))


def finished(
  raw: Float[np.ndarray, 'sh sw 3'],
  edit: Mapping[str, Any],
  frame: framing.Frame | None = None,
  paste: bool = True,
  truncate: bool = False,
) -> UInt8[np.ndarray, 'h w 3']:
  """Return the result inside the edit's mask (128 and more) and the source's own bytes outside.

  frame: see `network_inputs`. paste: False gives the result everywhere. truncate:
  round the network's pixels down to bytes.
  """
  if truncate:
    raw = images.from_uint8(images.to_uint8(raw, truncate))
  region = edit['mask'] >= 128 if paste else np.ones_like(edit['mask'], bool)
  if frame is None or frame.size == region.shape:
    return np.where(region[..., None], images.to_uint8(raw), edit['source'])
  return framing.stitch(frame, raw, edit['source'], region, feather=0.0, match='none')


def edit_key(seed: int, edit_id: int) -> Key[Array, '']:
  """The random key of an edit; its id may have 63 bits."""
  key = jax.random.fold_in(jax.random.key(seed), edit_id >> 32)
  return jax.random.fold_in(key, edit_id & (2**32 - 1))
