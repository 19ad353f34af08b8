"""The inputs of the metrics besides the pictures: feature networks, a mixture and real images."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from exedit.evaluation import networks as feature_networks
from exedit.evaluation import vectors
from exedit.evaluation.benchmark import Edit
from exedit.evaluation.networks import Features
from exedit.metrics import quality_score
from exedit.runtime import files, parallel, progress
from exedit.runtime.errors import UserError, one_line

KINDS_OF_FILE = ('.png', '.jpg', '.jpeg', '.webp')


LOADERS: Mapping[str, Callable[..., Any]] = dict(
  clip=feature_networks.load,
  dino=feature_networks.load,
  inception=feature_networks.load,
  lpips=feature_networks.load_lpips,
)


@dataclasses.dataclass(frozen=True)
class Real:
  """The real images from which the Fréchet distances are measured."""

  root: str
  paths: tuple[str, ...]
  sha256: tuple[str, ...]
  side: int | None  # side of the squares cut from them, the benchmark's own; None: uncut

  @property
  def digest(self) -> str:
    """A hash of the set that does not depend on file names."""
    return vectors.digest(str(self.side), *sorted(self.sha256))


@dataclasses.dataclass(frozen=True)
class Resources:
  """The networks by role, the mixture and the real images, as far as they are given."""

  networks: Mapping[str, Any]
  gmm: quality_score.GMM | None = None
  gmm_sha256: str = ''
  real: Real | None = None
  paths: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by role; and 'gmm'

  def summary(self) -> dict[str, Any]:
    """Return the entries of results.json about them."""
    named = lambda role, network: dict(
      name=network.name, path=self.paths[role], sha256=network.digest
    )
    found: dict[str, Any] = dict(networks={r: named(r, n) for r, n in self.networks.items()})
    found |= dict(reference=None, gmm=None)
    if self.real:
      found['reference'] = dict(root=self.real.root, images=len(self.real.paths))
      found['reference'] |= dict(side=self.real.side, sha256=self.real.digest)
    if self.gmm:
      found['gmm'] = dict(path=self.paths['gmm'], sha256=self.gmm_sha256)
    return found


def load(
  features: Mapping[str, str | None], gmm: str | None, real: str | None, edits: Sequence[Edit]
) -> Resources:
  """Load the resources from the paths of the config's groups features, gmm and reference.

  Raises:
    UserError: for anything that cannot be used.
  """
  found = networks(features)
  paths = {name.split('_')[0]: path for name, path in features.items() if path}
  mixture, digest = None, ''
  if gmm:
    paths['gmm'] = gmm
    mixture, digest = load_mixture(gmm, found.get('clip'))
  return Resources(found, mixture, digest, real_images(real, edits) if real else None, paths)


def networks(
  paths: Mapping[str, str | None], loaders: Mapping[str, Callable[..., Any]] = LOADERS
) -> dict[str, Any]:
  """Load the networks of `config.features` by role: clip, inception, lpips, dino.

  loaders: of a name and a path, by role.

  Raises:
    UserError: for two networks of one role, and as `networks.load`.
  """
  found: dict[str, Any] = {}
  for name, path in paths.items():
    if not path:
      continue
    role = name.split('_')[0]
    if role in found:
      raise UserError(f'config.features names two networks of the kind {role}: keep one of them')
    found[role] = loaders[role](name, path)
  return found


def load_mixture(path: str, clip: Features | None) -> tuple[quality_score.GMM, str]:
  """Read the quality score's mixture from its npz; return it with the file's SHA-256.

  Raises:
    UserError: if the file contains no mixture, or one of another width than CLIP's features.
  """
  try:
    digest = files.sha256(path)
    with np.load(path, allow_pickle=False) as arrays:
      gmm = quality_score.GMM.from_arrays(arrays)
  except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
    raise UserError(
      f'{path} contains no mixture ({one_line(error)}): python -m exedit.gmm makes one'
    ) from error
  width = gmm.means.shape[1]
  if clip is not None and width != clip.dim:
    raise UserError(
      f'{path} is a mixture over features of width {width}, but those of {clip.name} have'
      f' {clip.dim}: both must come from the same network'
    )
  return gmm, digest


def real_images(root: str, edits: Sequence[Edit]) -> Real:
  """Find and hash the images of a folder.

  If all sources of the benchmark are squares of one size, the images are cut to that size.

  Raises:
    UserError: if the folder does not exist or contains no image.
  """
  paths = image_files(root, 'config.reference.root')
  hashes = progress.bar(
    parallel.in_parallel(files.sha256, paths), 'real images', total=len(paths), leave=False
  )
  sizes = {edit.size for edit in edits}
  side = min(edits[0].size) if len(sizes) == 1 and len(set(edits[0].size)) == 1 else None
  return Real(root, tuple(paths), tuple(hashes), side)


def image_files(folder: str, setting: str) -> list[str]:
  """List the image files of a folder by name.

  Raises:
    UserError: if the folder (named by `setting`) does not exist or contains no image.
  """
  if not os.path.isdir(folder):
    raise UserError(f'{folder} is not a folder: {setting} names a folder of images')
  names = [n for n in files.listing(folder) if n.lower().endswith(KINDS_OF_FILE)]
  if not names:
    raise UserError(f'{folder} holds no image ({", ".join(KINDS_OF_FILE)}): name another folder')
  return [os.path.join(folder, name) for name in names]
