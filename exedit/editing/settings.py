"""The settings that the edits of several systems share. It imports no JAX: see `systems.forms`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError
from exedit.systems import Input, setting

LARGEST_SEED = 2**31 - 1
LARGEST_FEATHER = 256  # pixels
ZOOMS = ('auto', 'off', 'context')
MATCHES = ('none', 'colour')
FITS = ('squash', 'crop', 'pad')
SAMPLERS = ('plms', 'ddim', 'dpm_solver_pp')  # those of `latent_diffusion.SAMPLERS`
SPACINGS = ('leading', 'ldm')  # those of `Schedule.timesteps`
MASK_RESIZES = ('bilinear', 'nearest')  # those of `latent_diffusion.resize_mask`
LARGEST_BATCH = 1024  # edits
CONCEPT = (  # flags
  Flag('concept', None, 'concepts that the weights learn: C, or C,D, or <word>=C to rename', str),
  Flag('force', None, 'use concepts of other weights too', bool, shown='false'),
)
STRENGTH = 0.8  # of a change of a photo by a text (SDEdit)
PHOTO_AND_MASK = (
  Input('image', 'photo', 'photo to edit'),
  Input('mask', 'mask', 'mask of the size of the photo; white is repainted'),
)
EXEMPLAR = (
  Input('exemplar', 'picture', 'picture of the subject to paint there'),
  Input(
    'exemplar_mask', 'cutout', "mask that is white on the exemplar's subject",
    required=False, of='exemplar',
  ),
)  # fmt: skip
FEATHER = 2.0  # pixels of the network, see `framing.stitch`


@dataclasses.dataclass(frozen=True)
class EditSettings:
  """The settings of an edit that every system has."""

  seed: int = setting(0, 'seed of the first sample', bounds=(0, LARGEST_SEED))


@dataclasses.dataclass(frozen=True)
class PhotoSettings(EditSettings):
  """How a photo is shown to the network, and how the result goes back into it."""

  zoom: str = setting(
    'auto', 'zoom into a window around the mask: auto, off (never), context (always)', choices=ZOOMS
  )
  feather: float = setting(
    FEATHER, "the result fades in over this many of the network's pixels, inside the mask",
    bounds=(0, LARGEST_FEATHER),
  )  # fmt: skip
  match: str = setting('colour', 'match the colours around the mask', choices=MATCHES)
  paste: bool = setting(True, 'keep every pixel outside the mask')
  scale_mask: bool = setting(False, "scale a mask of the photo's shape and of another size")


def interval_shares(given: Any) -> tuple[float, float]:
  """The two shares of a guidance interval, from 'LOW,HIGH' or two numbers.

  Raises:
    UserError: unless 0 <= LOW < HIGH <= 1.
  """
  parts = given.split(',') if isinstance(given, str) else given
  try:
    low, high = (float(part) for part in parts)
  except (TypeError, ValueError, OverflowError):
    low, high = 1.0, 0.0
    why = 'it must be two shares LOW,HIGH of the noise schedule, such as 0.2,0.8'
  else:
    why = 'the first share must be less than the second; scale 1 turns guidance off'
    if not (0 <= low <= 1 and 0 <= high <= 1):
      why = 'both shares must be between 0 (no noise) and 1 (all noise)'
  if not 0 <= low < high <= 1:
    raise UserError(f'guidance_interval is {given!r:.40}: {why}')
  return low, high


def interval_text(given: Any) -> str:
  """The same guidance interval as the text that settings and recipes hold: '0.2,0.8'."""
  return ','.join(f'{share:.15g}' for share in interval_shares(given))


@dataclasses.dataclass(frozen=True)
class SamplingSettings(EditSettings):
  """How a latent-diffusion system samples; a system may override a default."""

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
  guidance_interval: str = setting(
    '0,1', 'LOW,HIGH: guide only between these shares of the noise schedule, from 0 (no noise) to '
    '1; outside, each step costs half',
    read=interval_text, network=True,
  )  # fmt: skip


def saved_evaluations(settings: Mapping[str, Any], most: int, photo: bool = True) -> str:
  """A line that counts the evaluations that a guidance interval saves; empty if it saves none.

  settings: the network's. most: see `systems.most_steps`. photo: whether the edit has one; without
  it the strength does not count.
  """
  from exedit import latent_diffusion
  from exedit.diffusion.schedule import Schedule

  shares = interval_shares(settings.get('guidance_interval', latent_diffusion.WHOLE))
  if shares == latent_diffusion.WHOLE or settings['scale'] == 1:
    return ''
  names = ('steps', 'sampler', 'spacing', *(['strength'] if photo else []))
  how = {name: settings[name] for name in names if name in settings}
  if how.get('strength', 0) is None:
    how['strength'] = STRENGTH
  total, guided = latent_diffusion.evaluations(Schedule(num_steps=most + 1), shares, **how)
  return (
    f'guidance in {guided} of {total} evaluations: {total - guided} of {2 * total} runs of the '
    'network are saved'
  )
