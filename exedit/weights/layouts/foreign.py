"""The layouts of other programs, in which not all weights have a place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exedit.input_pipeline import tokenizer as texts
from exedit.runtime import files
from exedit.runtime.errors import UserError
from exedit.weights.formats.tensor import Tensor
from exedit.weights.found import Weights
from exedit.weights.layouts import diffusers, original


def check(weights: Weights, layout: str, target: Path) -> None:
  """Checks that a layout has a place for these weights.

  PyTorch's code knows the systems only with the autoencoder of Stable Diffusion, whose first
  convolution takes single pixels.

  Raises:
    UserError: if it has none; if another tokenizer lies where that of the weights belongs.
  """
  model = weights.config['model']
  autoencoder = model.get('autoencoder', {})
  kind = autoencoder.get('kind', 'kl')
  if autoencoder.get('fold', 1) != 1:
    raise UserError(
      f'{weights.where} has an autoencoder of folded pixels, for which the {layout} layout has no '
      'place: only --layout=exedit can hold it'
    )
  if weights.kind == 'stable_diffusion_inpainting':
    raise UserError(
      f'{weights.where} holds weights of {weights.kind}, which exedit does not write in the '
      f'{layout} layout yet: use --layout=exedit'
    )
  if weights.kind not in ('paint_by_example', 'stable_diffusion') or kind != 'kl':
    what = 'no autoencoder' if kind != 'kl' else 'another network'
    raise UserError(
      f"{weights.where} has {what} (system '{weights.kind}', kind '{kind}'), so the {layout} layout"
      ' has no place for it: only --layout=exedit can hold it'
    )
  beside = target.parent / texts.FOLDER
  if layout == 'original' and weights.tokenizer and beside.exists():
    if texts.digest(beside) != texts.digest(weights.tokenizer):
      raise UserError(
        f'{beside} is another tokenizer than that of {weights.where}, which belongs beside '
        f'{target}: name a file in another folder'
      )


def write(
  target: Path,
  layout: str,
  config: Mapping[str, Any],
  tensors: Mapping[str, Tensor],
  tokenizer: Path | None,
) -> None:
  """Writes the diffusers or the original layout, whole or not at all.

  The tokenizer goes into the folder, or beside the file.
  """
  if layout == 'diffusers':
    with files.new_folder(target) as folder:
      diffusers.write(folder, config, tensors, tokenizer)
    return
  original.write(target, config, tensors)
  if tokenizer and not (target.parent / texts.FOLDER).exists():
    texts.copy(tokenizer, target.parent)
