"""Make the quality score's mixture, gmm.npz: from the published pickle, or fitted to images.

  python -m exedit.gmm --from=coco2017_gmm_k20 --to=gmm.npz
  python -m exedit.gmm --from=train2017 --clip=openai/clip-vit-base-patch32 --to=gmm.npz

The pickle is read without executing anything in it. Fitting a mixture needs scikit-learn and many
more images than the features have dimensions. Only scores under one mixture can be compared.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from exedit.runtime import doors
from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError, one_line

if TYPE_CHECKING:
  from exedit.metrics.quality_score import GMM


def make(
  source: str, output: str, *, clip: str | None = None, components: int = 20, seed: int = 0
) -> 'GMM':
  """Write a mixture as npz.

  Args:
    source: a pickled scikit-learn GaussianMixture, or a folder of natural images to fit one to.
    output: the file to write, which must not exist.
    clip: CLIP's weights (see networks.load). It, components and seed are for a fit.
    components: the number of components. seed: the seed of the fit's start.
  Raises:
    UserError: if the source is neither of the two, or anything else cannot be used.
  """
  import numpy as np

  from exedit.metrics import quality_score
  from exedit.runtime import compilation, files
  from exedit.weights.formats import mixture

  if os.path.exists(output):
    raise UserError(f'{output} exists already: name another file, or remove it')
  if not os.path.isdir(os.path.dirname(output) or '.'):
    raise UserError(f'cannot write {output}: its folder does not exist; make it first')
  files.check_output(output, '--to')
  compilation.cache_compiled()
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


def fit(folder: str, clip: str | None, components: int, seed: int) -> 'GMM':
  """Fit a mixture to the CLIP features of a folder's images, computed as the evaluation does."""
  from exedit import images
  from exedit.evaluation import networks, resources
  from exedit.metrics import quality_score
  from exedit.runtime import parallel, progress

  if not clip:
    raise UserError(f'--clip is missing: to fit a mixture, get {networks.needed("clip_b32")}')
  paths = resources.image_files(folder, '--from')
  network = networks.load('clip', clip)
  shown = progress.bar(paths, unit='image')
  prepared = parallel.in_parallel(lambda path: network.prepare(images.read(path)), shown)
  return quality_score.fit(network.embed(prepared), components, seed=seed)


FLAGS = (
  Flag('from', doors.REQUIRED, 'a pickled mixture, or a folder of images'),
  Flag('to', doors.REQUIRED, 'the .npz to write'),
  Flag('clip', None, "CLIP's weights for a fit: a file, folder or hub id", str),
  Flag('components', 20, 'components of a fitted mixture', least=1),
  Flag('seed', 0, "seed of the fit's start", least=0, most=2**31 - 1),
)


def main(to: str, **given: Any) -> None:
  """Make the mixture that the flags describe."""
  gmm = make(given.pop('from'), to, **given)
  components, width = gmm.means.shape
  print(f'{to}: {components} components of width {width}')


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
