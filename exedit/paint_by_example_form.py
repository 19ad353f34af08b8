"""Inputs and settings of an edit by Paint by Example. It imports no JAX: see `systems.forms`."""

import dataclasses

from exedit.editing.settings import FITS, PhotoSettings
from exedit.systems import Form, Input, setting

SAMPLERS = ('plms', 'ddim', 'dpm_solver_pp')  # those of `latent_diffusion.SAMPLERS`
SPACINGS = ('leading', 'ldm')  # those of `Schedule.timesteps`
MASK_RESIZES = ('bilinear', 'nearest')  # those of `latent_diffusion.resize_mask`


@dataclasses.dataclass(frozen=True)
class Settings(PhotoSettings):
  """The settings of one edit."""

  steps: int = setting(50, 'denoising steps', bounds=(1, 10**6), network=True)
  scale: float = setting(
    5.0, 'guidance scale; 1 turns guidance off', bounds=(-1000, 1000), network=True
  )
  sampler: str = setting('plms', 'sampling algorithm', choices=SAMPLERS, network=True)
  spacing: str = setting(
    'leading', 'timesteps of plms and ddim: exactly as many as `steps` (leading), or up to the end '
    "of the schedule as in the original's code (ldm: 31 for 30 steps)",
    choices=SPACINGS, network=True,
  )  # fmt: skip
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
