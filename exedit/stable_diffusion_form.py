"""Inputs and settings of a picture by Stable Diffusion. It imports no JAX: see `systems.forms`."""

import dataclasses

from exedit.editing.settings import EditSettings
from exedit.paint_by_example_form import SAMPLERS, SPACINGS
from exedit.systems import Form, Input, setting


@dataclasses.dataclass(frozen=True)
class Settings(EditSettings):
  """The settings of one picture."""

  steps: int = setting(50, 'denoising steps', bounds=(1, 10**6), network=True)
  scale: float = setting(
    7.5, 'guidance scale; 1 turns guidance off', bounds=(-1000, 1000), network=True
  )
  sampler: str = setting('plms', 'sampling algorithm', choices=SAMPLERS, network=True)
  spacing: str = setting(
    'leading', 'timesteps of plms and ddim, see Paint by Example', choices=SPACINGS, network=True
  )


FORM = Form(
  name='stable_diffusion',
  inputs=(
    Input('prompt', 'text', 'text of the picture to make'),
    Input('negative_prompt', 'text', 'text of what it should not show', required=False),
  ),
  settings=Settings,
)
