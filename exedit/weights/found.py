"""`Weights`: the description of weights in a folder or file. No tensor has been read."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from exedit.input_pipeline import tokenizer as texts
from exedit.runtime.errors import UserError
from exedit.weights import digests, translate
from exedit.weights.formats.tensor import Tensor
from exedit.weights.translate import Row


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights that were found but not read.

  config: `model` are the arguments of the system's `build`, `data` says for which sizes the model
    was trained, `edit` how it samples.
  theirs: the tensors by the names that they have in the files; `table` translates the names.
  files: the files that hold the weights.
  kind: the name of the system.
  sha256: the digests of files, where the files' maker left them.
  which: 'ema' or 'params', whichever was taken, where the files have both.
  notes: which settings were taken from where, for the user.
  tokenizer: the folder with the files of the tokenizer, for weights that take texts and have one.
  layout: 'exedit', 'diffusers', 'original' or 'transformers'.
  words: new words that the tokenizer has to know, one for each row of `text.new_tokens`.
  concepts: the digests of the concepts that were applied, in their order.
  where: the name of the weights in messages.
  """

  config: dict[str, Any]
  theirs: Mapping[str, Tensor]
  table: Sequence[Row]
  files: tuple[Path, ...]
  step: int = 0
  kind: str = 'paint_by_example'
  sha256: Mapping[Path, str] = dataclasses.field(default_factory=dict)
  which: str = ''
  notes: tuple[str, ...] = ()
  tokenizer: Path | None = None
  layout: str = ''
  words: tuple[str, ...] = ()
  concepts: tuple[str, ...] = ()
  where: str = ''

  @functools.cached_property
  def tensors(self) -> Mapping[str, Tensor]:
    """The tensors by exedit's paths and in exedit's layout; `read` of one reads that one.

    Raises:
      UserError: with a list of the names that no network of any size has.
    """
    return self.fit()

  def fit(self, like: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Returns the tensors after a check of all names and shapes against a model's (`like`).

    Raises:
      UserError: with one list of all differences, in the names of the files; or if a file is not
        what its maker wrote.
    """
    for file, expected in self.sha256.items():
      found = digests.sha256(file)
      if found != expected:
        raise UserError(
          f'{file} is damaged (its SHA-256 is {found[:12]}..., written was {expected[:12]}...): '
          'restore it from a copy'
        )
    tensors = translate.to_ours(self.table, self.theirs, like, self.where)
    for name, tensor in tensors.items():
      if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(
          f'{self.where} holds {tensor.dtype} numbers for {name}: weights must be floating-point; '
          'quantised ones cannot be used'
        )
    return tensors

  def without(self, *parts: str) -> 'Weights':
    """The weights without these parts of the model."""
    model = {name: value for name, value in self.config['model'].items() if name not in parts}
    table = [
      (theirs, None if ours and ours.split('.')[0] in parts else ours, transform)
      for theirs, ours, transform in self.table
    ]
    return dataclasses.replace(self, config=dict(self.config, model=model), table=table)

  def digest(self) -> str:
    """Returns a SHA-256 in hexadecimal that names these weights; that of the file if it is one."""
    try:
      return digests.together(self.files, ' '.join([self.which, *self.concepts]))
    except OSError as error:
      raise UserError(f'{error.filename} is gone or cannot be read: {error.strerror}') from error

  def tokenizer_digest(self) -> str:
    """Returns a SHA-256 in hexadecimal of the tokenizer's files; '' for weights without one."""
    return texts.digest(self.tokenizer) if self.tokenizer else ''


def system_of(unet: Mapping[str, Any], z: int, by_text: bool, where: str) -> str:
  """Returns the name of the system; UserError for networks of other systems.

  unet: with `in_channels` and `out_channels`. z: channels of the latents.
  """
  inputs, outputs = unet['in_channels'], unet['out_channels']
  if outputs == z and by_text and inputs == z:
    return 'stable_diffusion'
  if outputs == z and not by_text and inputs == 2 * z + 1:
    return 'paint_by_example'
  if outputs == z and by_text and inputs == 2 * z + 1:
    return 'stable_diffusion_inpainting'
  raise UserError(
    f'{where}: the UNet takes {inputs} channels and gives {outputs}, and the latents have {z}: '
    f'Paint by Example takes {2 * z + 1} and an image, Stable Diffusion {z} and a text'
  )
