"""What scores are measured with: the feature networks, the mixture, and the real images."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from exedit.evaluation import cache as caches
from exedit.evaluation import features
from exedit.evaluation.bench import EVERY, Edit
from exedit.evaluation.features import Features
from exedit.metrics import quality_score as quality
from exedit.runtime import parallel
from exedit.runtime.errors import UserError, one_line

KINDS_OF_FILE = ('.png', '.jpg', '.jpeg', '.webp')


@dataclasses.dataclass(frozen=True)
class Real:
  """The real images that the Frechet distances are measured from."""

  root: str
  paths: tuple[str, ...]
  sha256: tuple[str, ...]
  side: int | None  # of the square they are made, as large as the benchmark's; None: as they are

  @property
  def digest(self) -> str:
    """Names the set, whatever its files are called."""
    return caches.key(str(self.side), *sorted(self.sha256))


@dataclasses.dataclass(frozen=True)
class Instruments:
  """What scores are made with: networks by role, the mixture and the real images, where given."""

  networks: Mapping[str, Any]
  gmm: quality.GMM | None = None
  gmm_sha256: str = ''
  real: Real | None = None


# Looking at what is given


def networks(paths: Mapping[str, str | None]) -> dict[str, Any]:
  """The networks of `config.features` by role: clip, inception, lpips, dino.

  Raises:
    UserError: for two of one role, and as `features.load`.
  """
  found: dict[str, Any] = {}
  for name, path in paths.items():
    if not path:
      continue
    role = name.split('_')[0]
    if role in found:
      raise UserError(f'config.features names two networks of the kind {role}: keep one of them')
    load = features.load_lpips if role == 'lpips' else features.load
    found[role] = load(name, path)
  return found


def mixture(path: str, clip: Features | None) -> tuple[quality.GMM, str]:
  """The quality score's mixture from its npz and the file's SHA-256.

  Raises:
    UserError: for a file that holds none, and for one of another width than CLIP's features.
  """
  try:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    with np.load(path, allow_pickle=False) as arrays:
      gmm = quality.GMM.from_arrays(arrays)
  except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
    raise UserError(
      f'{path} holds no mixture ({one_line(error)}): python -m exedit.gmm makes one'
    ) from error
  width = gmm.means.shape[1]
  if clip is not None and width != clip.dim:
    raise UserError(
      f'{path} is a mixture over features of width {width}, but those of {clip.name} have'
      f' {clip.dim}: both must come from the same network'
    )
  return gmm, digest


def real_images(root: str, edits: Sequence[Edit]) -> Real:
  """The images of a folder, hashed.

  Raises:
    UserError: where the folder is none or has no image.
  """
  if not os.path.isdir(root):
    raise UserError(f'{root} is not a folder: config.reference.root holds real images')
  names = sorted(n for n in os.listdir(root) if n.lower().endswith(KINDS_OF_FILE))
  if not names:
    raise UserError(f'{root} holds no image ({", ".join(KINDS_OF_FILE)}): name another folder')
  paths = tuple(os.path.join(root, name) for name in names)
  hashes = tqdm(
    parallel.in_parallel(_sha256, paths), 'real images', len(paths), mininterval=EVERY, leave=False
  )
  sizes = {edit.size for edit in edits}
  side = min(edits[0].size) if len(sizes) == 1 and len(set(edits[0].size)) == 1 else None
  return Real(root, paths, tuple(hashes), side)


def _sha256(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def square(pixels: UInt8[np.ndarray, 'h w 3'], side: int | None) -> UInt8[np.ndarray, 'p q 3']:
  """The shorter side made `side` long, then the square in the middle; None: as it is.

  Bilinear, as the paper's real set was made (scripts/create_square_gt_for_fid.py, facts 6.2).
  """
  if side is None or pixels.shape[:2] == (side, side):
    return pixels
  h, w = pixels.shape[:2]
  size = (w * side // min(h, w), h * side // min(h, w))
  image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
  left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
  return np.asarray(image.crop((left, top, left + side, top + side)))
