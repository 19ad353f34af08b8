"""The settings that the edits of several systems share. It imports no JAX: see `systems.forms`."""

import dataclasses

from exedit.systems import setting

LARGEST_SEED = 2**31 - 1
LARGEST_FEATHER = 256  # pixels
ZOOMS = ('auto', 'off', 'context')
MATCHES = ('none', 'colour')
FITS = ('squash', 'crop', 'pad')
LARGEST_BATCH = 1024  # edits
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
