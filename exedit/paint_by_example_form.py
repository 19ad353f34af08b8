"""Inputs and settings of an edit by Paint by Example. It imports no JAX: see `systems.forms`."""

import dataclasses

from exedit.editing.settings import FITS, MASK_RESIZES, PhotoSettings, SamplingSettings
from exedit.systems import Form, Input, setting


@dataclasses.dataclass(frozen=True)
class Settings(SamplingSettings, PhotoSettings):
  """The settings of one edit."""

  exemplar_fit: str = setting(
    'squash', 'how an exemplar that is not square becomes square', choices=FITS
  )
  mask_resize: str = setting(
    'bilinear', "resize of the mask to the latents' size: the original's, or diffusers' (nearest)",
    choices=MASK_RESIZES, network=True,
  )  # fmt: skip


FORM = Form(
  name='paint_by_example',
  inputs=(
    Input('image', 'photo', 'photo to edit'),
    Input('mask', 'mask', 'mask of the size of the photo; white is repainted'),
    Input('exemplar', 'picture', 'picture of the subject to paint there'),
    Input(
      'exemplar_mask', 'cutout', "mask that is white on the exemplar's subject",
      required=False, of='exemplar',
    ),
  ),
  settings=Settings,
)  # fmt: skip
