"""Make the quality score's mixture, gmm.npz: from the published pickle, or fitted to images.

  python -m exedit.gmm --from=coco2017_gmm_k20 --to=gmm.npz
  python -m exedit.gmm --from=train2017 --clip=openai/clip-vit-base-patch32 --to=gmm.npz

The pickle is read without executing anything in it. Fitting a mixture needs scikit-learn and many
more images than the features have dimensions. Only scores under one mixture can be compared.
"""

import os
from typing import Any

import numpy as np
from absl import flags

from exedit import images
from exedit.evaluation import networks, resources
from exedit.metrics import quality_score
from exedit.runtime import compilation, doors, files, parallel, progress
from exedit.runtime.errors import UserError, one_line
from exedit.weights.formats import mixture


def make(
  source: str, output: str, *, clip: str | None = None, components: int = 20, seed: int = 0
) -> quality_score.GMM:
  """Write a mixture as npz.

  Args:
    source: a pickled scikit-learn GaussianMixture, or a folder of natural images to fit one to.
    output: the file to write, which must not exist.
    clip: CLIP's weights (see networks.load). It, components and seed are for a fit.
    components: the number of components. seed: the seed of the fit's start.
  Raises:
    UserError: if the source is neither of the two, or anything else cannot be used.
  """
  if os.path.exists(output):
    raise UserError(f'{output} exists already: name another file, or remove it')
  if not os.path.isdir(os.path.dirname(output) or '.'):
    raise UserError(f'cannot write {output}: its folder does not exist; make it first')
  try:
    if os.path.isdir(source):
      gmm = fit(source, clip, components, seed)
    elif os.path.exists(source):
      gmm = quality_score.GMM.from_arrays(mixture.read(source))
    else:
      raise UserError(f'{source} does not exist: --from is a pickled mixture or a folder of images')
  except ValueError as error:
    raise UserError(f'{source}: {one_line(error)}') from error
  with files.writing(output) as file:
    np.savez(file, **gmm.to_arrays())  # pyright: ignore[reportArgumentType]
  return gmm


def fit(folder: str, clip: str | None, components: int, seed: int) -> quality_score.GMM:
  """Fit a mixture to the CLIP features of a folder's images, computed as the evaluation does."""
  if not clip:
    raise UserError(f'--clip is missing: to fit a mixture, get {networks.needed("clip_b32")}')
  paths = resources.image_files(folder, '--from')
  network = networks.load('clip', clip)
  shown = progress.bar(paths, unit='image')
  prepared = parallel.in_parallel(lambda path: network.prepare(images.read(path)), shown)
  return quality_score.fit(network.embed(prepared), components, seed=seed)


def define_flags() -> None:
  """Define the arguments of `make` as flags."""
  values = flags.FLAGS
  flags.DEFINE_string('from', None, 'a pickled mixture, or a folder of images', values)
  flags.DEFINE_string('to', None, 'the .npz to write', values)
  flags.DEFINE_string('clip', None, "CLIP's weights for a fit: a file, folder or hub id", values)
  flags.DEFINE_integer('components', 20, 'components of a fitted mixture', 1, flag_values=values)
  flags.DEFINE_integer('seed', 0, "seed of the fit's start", 0, 2**31 - 1, values)


def main(_: list[str]) -> None:
  """Make the mixture that the flags describe."""
  given: dict[str, Any] = {
    name: flags.FLAGS[name].value for name in ('from', 'to', 'clip', 'components', 'seed')
  }
  source, output = given.pop('from'), given.pop('to')
  doors.require(**{'from': source, 'to': output})
  compilation.cache_compiled()
  gmm = make(source, output, **given)
  components, width = gmm.means.shape
  print(f'{output}: {components} components of width {width}')


if __name__ == '__main__':
  define_flags()
  doors.run(main)
