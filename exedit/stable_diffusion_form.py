"""Inputs and settings of a picture by Stable Diffusion. It imports no JAX: see `systems.forms`."""

import dataclasses

from exedit.editing.settings import SamplingSettings
from exedit.systems import Form, Input, setting


@dataclasses.dataclass(frozen=True)
class Settings(SamplingSettings):
  """The settings of one picture."""

  scale: float = setting(
    7.5, 'guidance scale; 1 turns guidance off', bounds=(-1000, 1000), network=True
  )
  size: int = setting(
    0, 'side of a picture that is made of a text alone; 0: as in training', bounds=(0, 4096)
  )


FORM = Form(
  name='stable_diffusion',
  inputs=(
    Input('prompt', 'text', 'text of the picture to make'),
    Input('negative_prompt', 'text', 'text of what it should not show', required=False),
  ),
  settings=Settings,
)
