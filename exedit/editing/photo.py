"""The settings of an edit that every system of photos shares."""

import dataclasses

from exedit.editing import framing
from exedit.systems import setting

LARGEST_SEED = 2**31 - 1
WIDEST = 256  # pixels of feather


@dataclasses.dataclass(frozen=True)
class PhotoSettings:
  """How a photo is shown to the network, and how the result goes back into it."""

  seed: int = setting(0, 'seed of the first sample', bounds=(0, LARGEST_SEED))
  zoom: str = setting(
    'auto', 'zoom into a window around the mask: auto, off (never), context (always)',
    choices=framing.ZOOMS,
  )  # fmt: skip
  feather: float = setting(
    framing.FEATHER, "the result fades in over this many of the network's pixels, inside the mask",
    bounds=(0, WIDEST),
  )  # fmt: skip
  match: str = setting('colour', 'match the colours around the mask', choices=framing.MATCHES)
  paste: bool = setting(True, 'keep every pixel outside the mask')
