"""Inputs and settings of Blended Diffusion by an exemplar. It imports no JAX: see `systems.forms`.

The numbers are those of the published code (github.com/omriav/blended-diffusion) where it has them:
a quarter of the steps is skipped, and CLIP sees 8 views of the hole.
"""

import dataclasses

from exedit.editing.settings import EXEMPLAR, FITS, PHOTO_AND_MASK, SAMPLERS
from exedit.stable_diffusion_form import TEXTS, InpaintingSettings
from exedit.systems import Form, setting


@dataclasses.dataclass(frozen=True)
class Settings(InpaintingSettings):
  """The settings of one edit.

  DDIM is the default because the views differ from step to step, and the formulas of PLMS enlarge
  such differences. The scale is that of diffusers' community pipeline CLIP Guided Stable Diffusion;
  the published 1000 is for a network of pixels (docs/facts.md, Blended Diffusion).
  """

  exemplar_fit: str = setting(
    'squash', 'how an exemplar that is not square becomes square', choices=FITS
  )
  sampler: str = setting('ddim', 'sampling algorithm', choices=SAMPLERS, network=True)
  strength: float = setting(
    0.75, 'the share of the steps that is made, from the photo with noise on it; 1: nearly from '
    'noise', bounds=(0, 1), network=True,
  )  # fmt: skip
  clip_scale: float = setting(
    100.0, 'scale of the guidance by the exemplar, through CLIP; 0 turns it off',
    bounds=(0, 10**6), network=True,
  )  # fmt: skip
  views: int = setting(
    8, 'number of views of the hole that CLIP compares with the exemplar in each step: the hole '
    'itself, and turned and tilted copies', bounds=(1, 64), network=True,
  )  # fmt: skip


FORM = Form(
  name='blended_diffusion',
  inputs=(
    *PHOTO_AND_MASK,
    *EXEMPLAR,
    *(dataclasses.replace(text, required=False) for text in TEXTS),
  ),
  settings=Settings,
)
