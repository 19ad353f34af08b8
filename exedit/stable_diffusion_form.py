"""Inputs and settings of a picture by Stable Diffusion. It imports no JAX: see `systems.forms`."""

import dataclasses

from exedit.editing.prompt_settings import PromptSettings
from exedit.editing.settings import PHOTO_AND_MASK, PhotoSettings, SamplingSettings
from exedit.systems import Form, Input, setting

TEXTS = (
  Input('prompt', 'text', 'text of the picture to make'),
  Input('negative_prompt', 'text', 'text of what it should not show', required=False),
)


@dataclasses.dataclass(frozen=True)
class InpaintingSettings(SamplingSettings, PhotoSettings):
  """The settings of one edit by an inpainting model."""

  scale: float = setting(
    7.5, 'guidance scale; 1 turns guidance off', bounds=(-1000, 1000), network=True
  )


@dataclasses.dataclass(frozen=True)
class Settings(PromptSettings, InpaintingSettings):
  """The settings of one picture; those of a photo count only if there is one."""

  strength: float | None = setting(
    None, "with a photo: from 0, the photo's look, to 1, that of the text. It is the share of the "
    "steps that is made, from the photo with noise on it (default: 0.8); with --target the photo's "
    'layout is held for the other share of the steps (default: 0.5)',
    bounds=(0, 1), network=True,
  )  # fmt: skip
  size: int = setting(
    0, 'side of a picture that is made of a text alone; 0: as in training', bounds=(0, 4096)
  )


FORM = Form(
  name='stable_diffusion',
  inputs=(
    *TEXTS,
    Input(
      'target',
      'text',
      'text of the result, if --prompt is that of the photo (Prompt-to-Prompt)',
      required=False,
    ),
    Input(
      'image', 'photo', 'photo to change (SDEdit; with --target Prompt-to-Prompt)', required=False
    ),
    Input('mask', 'mask', 'white where the photo changes (Blended Diffusion)', required=False),
  ),
  settings=Settings,
)
INPAINTING = Form(
  name='stable_diffusion_inpainting',
  inputs=(*PHOTO_AND_MASK, *TEXTS),
  settings=InpaintingSettings,
)
