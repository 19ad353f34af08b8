import numpy as np

from exedit.metrics.psnr import psnr


def test_psnr_of_known_errors():
  np.testing.assert_allclose(psnr(np.array([1.0, 0.01, 1e-4])), [0, 20, 40])
  assert psnr(np.zeros(1))[0] == 100
