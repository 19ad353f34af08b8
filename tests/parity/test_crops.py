"""Agreement with torch's tensor resize, which the released data set used (without antialiasing)."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from exedit.input_pipeline import crops  # noqa: E402  # noqa: E402


@pytest.mark.parametrize('shape', [(768, 768), (300, 500), (700, 512), (64, 64)])
@pytest.mark.parametrize('size', [512, 32])
def test_resize_agrees_with_torch(shape, size):
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
  theirs = torch.nn.functional.interpolate(
    torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None],
    (size, size),
    mode='bilinear',
    align_corners=False,
    antialias=False,
  )
  theirs = theirs[0].permute(1, 2, 0).numpy()
  assert np.abs(crops.resize(image, size) - theirs).max() < 1.01  # ours are whole numbers
