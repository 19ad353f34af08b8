"""Inputs and settings of an edit by Paint by Example. It imports no JAX: see `systems.forms`."""

import dataclasses

from exedit.editing.settings import (
  EXEMPLAR,
  FITS,
  MASK_RESIZES,
  PHOTO_AND_MASK,
  PhotoSettings,
  SamplingSettings,
)
from exedit.systems import Form, setting


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
  inputs=(*PHOTO_AND_MASK, *EXEMPLAR),
  settings=Settings,
)
