"""Converts weights to another layout, so that they can be handed on.

  python -m exedit.convert --from=/tmp/tiny --to=weights/mine
  python -m exedit.convert --from=model.ckpt --to=Paint-by-Example --layout=diffusers
  python -m exedit.convert --from=/mnt/run --to=mine.safetensors --layout=original --which=params
  python -m exedit.convert --from=/mnt/run --to=mine.ckpt --layout=original
  python -m exedit.convert --from=stable-diffusion-v1-4 --concept=delta.bin --to=mine.safetensors
  python -m exedit.convert --from=SD --clip=openai/clip-vit-large-patch14 --to=weights/blended

--from takes everything that `paint_by_example.load` takes, and nothing in it is executed. All
tensors are kept bit by bit, also those that no computation uses, unless --dtype asks for another
type. With --concept it converts that instead; --from then are the weights that it belongs to.
--clip joins Stable Diffusion with CLIP: the weights of Blended Diffusion by an exemplar.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exedit.editing.settings import CONCEPT
from exedit.runtime import doors
from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError

LAYOUTS, FORMATS = ('exedit', 'diffusers', 'original'), ('safetensors', 'ckpt')
CONCEPTS = ('adobe', 'compressed', 'comfyui', 'kohya', 'embedding')  # layouts of concepts alone
OWN = ('force', 'captions', 'rank')
OTHERS = ('clip', 'format', 'dtype', 'heads', 'groups', 'clip_heads')
TYPES = ('float32', 'float16', 'bfloat16')
ABOUT = "{} of an original checkpoint's {}, because the file does not say it (published: {})"
FLAGS = (
  Flag('from', doors.REQUIRED, 'a run, a folder, a .ckpt or .safetensors file, or a hub id'),
  Flag('to', doors.REQUIRED, 'new folder, or file of the original layout'),
  Flag('clip', None, 'a CLIP, whose image tower joins Stable Diffusion: Blended Diffusion', str),
  Flag('layout', 'exedit', 'layout; from adobe on only of concepts', (*LAYOUTS, *CONCEPTS)),
  Flag(
    'format', None, 'of the original layout; ckpt is for torch.load', FORMATS, shown='as --to ends'
  ),
  Flag('which', 'ema', "a run's moving average, or its last step", ['ema', 'params']),
  Flag('dtype', None, 'type to store', TYPES, shown="each tensor's own"),
  Flag('revision', None, 'revision of the hub repository', str),
  Flag('heads', None, ABOUT.format('heads', 'UNet', 8), int, 1),
  Flag('groups', None, ABOUT.format('groups', 'UNet', 32), int, 1),
  *CONCEPT,
  Flag('captions', None, 'file of about 200 texts that a merge of concepts leaves alone', str),
  Flag('rank', None, 'of the LoRA of a concept (kohya)', int, 1, 768, '32'),
  Flag('clip_heads', None, ABOUT.format('heads', 'CLIP', '16, one per 64 channels'), int, 1),
)


def convert(
  src: str,
  to: str,
  *,
  clip: str | None = None,
  layout: str = 'exedit',
  which: str = 'ema',
  dtype: str | None = None,
  revision: str | None = None,
  heads: int | None = None,
  groups: int | None = None,
  clip_heads: int | None = None,
  format: str | None = None,
  say: Callable[[str], None] = print,
) -> None:
  """Writes the weights `src` to the new folder or file `to`, whole or not at all.

  clip: see `find.with_exemplars`.
  layout: 'exedit' and 'diffusers' are folders, 'original' is one file.
  which: 'ema' or 'params', if `src` has both.
  dtype: one of TYPES; by default the tensors keep their types.
  revision: of a hub repository.
  heads, groups, clip_heads: of an original checkpoint that does not have the published size.
  format: of the original layout, one of FORMATS; by default as `to` ends.
  say: is called with each line of output.
  Raises:
    UserError: if the weights cannot be used, the layout cannot hold them, or `to` exists.
  """
  from exedit import latent_diffusion, systems
  from exedit.runtime import files, progress
  from exedit.weights import find
  from exedit.weights.formats.tensor import counted, to_dtype
  from exedit.weights.layouts import foreign, original, own

  target = Path(to)
  files.check_new(target)
  if not target.absolute().parent.is_dir():
    raise UserError(f'cannot write {to}: the folder {target.parent} does not exist; make it first')
  if layout in CONCEPTS:
    raise UserError(f'--layout={layout} holds a concept: name one as --concept')
  if layout == 'original':
    original.format_of(target, format)
  elif format:
    raise UserError(f'--format={format} goes with --layout=original: leave one of them out')
  weights = find.weights(src, which, revision, heads=heads, groups=groups, clip_heads=clip_heads)
  if clip:
    weights = find.with_exemplars(weights, clip)
  for note in weights.notes:
    say(f'{weights.where}: {note}')
  system, model = systems.of(weights), dict(weights.config['model'])
  _, shapes = latent_diffusion.abstract(system.build, model, weights.where)
  if layout != 'exedit':
    foreign.check(weights, layout, target)
    if system.tokenizer and (weights.tokenizer or layout == 'diffusers'):
      system.tokenizer(weights)  # which refuses one that does not belong to the weights
  tensors = to_dtype(weights.fit(shapes), dtype)
  types = ', '.join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
  size = sum(tensor.nbytes for tensor in tensors.values())
  with progress.bar(what='converting', total=size, unit='B', unit_scale=True) as bar:
    reading = counted(tensors, bar.update)
    if layout == 'exedit':
      beside = [Path(src) / name for name in ('metrics.jsonl', 'versions.json')]
      named = {} if weights.kind == 'paint_by_example' else dict(system=weights.kind)
      own.write(
        target,
        weights.config | named,
        reading,
        step=weights.step,
        beside=beside,
        tokenizer=weights.tokenizer,
      )
    else:
      config = dict(weights.config, model=system.complete(model))
      foreign.write(target, layout, config, reading, weights.tokenizer)
  say(f'{to}: {layout} layout, {len(tensors)} tensors, {size / 1e6:.1f} MB in {types}')


def main(to: str, **given: Any) -> None:
  """Converts as the flags say."""
  src, concept = given.pop('from'), given.pop('concept')
  way, others = ('without', OWN) if concept is None else ('with', OTHERS)
  for flag in FLAGS:
    if flag.name in others and given.pop(flag.name) is not None:
      raise UserError(f'--{flag.name} does not go {way} --concept: leave it out')
  if concept is None:
    convert(src, to, **given)
  else:
    from exedit.concepts import files

    files.convert(src, to, concept, **given)


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
