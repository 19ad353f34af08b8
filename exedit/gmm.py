"""The quality score's mixture as gmm.npz: from the published pickle, or fitted to a folder.

  python -m exedit.gmm --from=coco2017_gmm_k20 --to=gmm.npz
  python -m exedit.gmm --from=train2017 --clip=openai/clip-vit-base-patch32 --to=gmm.npz

The pickle is read without executing anything in it. A mixture of one's own needs scikit-learn and
many more images than the width of the features; only scores under one mixture compare.
"""

import os
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from exedit import images
from exedit.evaluation import features
from exedit.evaluation.bench import EVERY
from exedit.evaluation.instruments import KINDS_OF_FILE
from exedit.metrics import quality_score
from exedit.runtime import compilation, doors, parallel
from exedit.runtime.errors import UserError, one_line
from exedit.weights.formats import mixture


def make(
  source: str, output: str, *, clip: str | None = None, components: int = 20, seed: int = 0
) -> quality_score.GMM:
  """Write a mixture as npz, all of it or nothing.

  Args:
    source: a pickled scikit-learn GaussianMixture, or a folder of natural images to fit one to.
    output: the file to write, which must not exist.
    clip: CLIP's weights (features.load), components and seed: of a mixture that is fitted.
  Raises:
    UserError: for a source that is neither, and whatever else cannot be used.
  """
  if os.path.exists(output):
    raise UserError(f'{output} exists already: name another file, or remove it')
  if not os.path.isdir(os.path.dirname(output) or '.'):
    raise UserError(f'cannot write {output}: its folder does not exist; make it first')
  try:
    if os.path.isdir(source):
      gmm = fit(source, clip, components, seed)
    elif os.path.exists(source):
      gmm = quality_score.GMM(**mixture.read(source))
    else:
      raise UserError(f'{source} does not exist: --from is a pickled mixture or a folder of images')
  except ValueError as error:
    raise UserError(f'{source}: {one_line(error)}') from error
  temporary = f'{output}.{os.getpid()}.tmp'
  try:
    with open(temporary, 'wb') as file:
      arrays: dict[str, Any] = gmm.to_arrays()
      np.savez(file, **arrays)
    os.replace(temporary, output)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)
  return gmm


def fit(folder: str, clip: str | None, components: int, seed: int) -> quality_score.GMM:
  """A mixture of the CLIP features of a folder's images, each seen as the evaluation sees it."""
  if not clip:
    raise UserError(f'--clip is missing: to fit a mixture, get {features.needed("clip_b32")}')
  if components < 1:
    raise UserError(f'--components={components}: at least 1')
  names = sorted(n for n in os.listdir(folder) if n.lower().endswith(KINDS_OF_FILE))
  if not names:
    raise UserError(f'{folder} holds no image ({", ".join(KINDS_OF_FILE)}): name another folder')
  network = features.load('clip', clip)
  paths = tqdm([os.path.join(folder, n) for n in names], unit='image', mininterval=EVERY)
  prepared = parallel.in_parallel(lambda path: network.prepare(images.read(path)), paths)
  return quality_score.fit(network.embed(prepared), components, seed=seed)


def define_flags() -> None:
  """The arguments of `make`, as flags."""
  values = flags.FLAGS
  flags.DEFINE_string('from', None, 'a pickled mixture, or a folder of images', values)
  flags.DEFINE_string('to', None, 'the .npz to write', values)
  flags.DEFINE_string('clip', None, "CLIP's weights, to fit: a file, folder or hub id", values)
  flags.DEFINE_integer('components', 20, 'of a mixture that is fitted', flag_values=values)
  flags.DEFINE_integer('seed', 0, 'of its start', 0, 2**31 - 1, values)


def main(_: list[str]) -> None:
  """Open the door: a mixture in, or images, and an npz out."""
  given: dict[str, Any] = {
    name: flags.FLAGS[name].value for name in ('from', 'to', 'clip', 'components', 'seed')
  }
  source, output = given.pop('from'), given.pop('to')
  for name, value in (('from', source), ('to', output)):
    if not value:
      raise UserError(f'--{name} is missing')
  compilation.cache_compiled()
  gmm = make(source, output, **given)
  components, width = gmm.means.shape
  kind = gmm.covariance_type
  print(f'{output}: {components} components of width {width}, {kind} covariances')


if __name__ == '__main__':
  define_flags()
  doors.run(main)
