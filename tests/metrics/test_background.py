import numpy as np
import pytest

from exedit.metrics import background


def scene(h=40, w=50, seed=0):
  """A smooth picture with noise, and a hole in it."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:h, :w]
  waves = 128 + 60 * np.sin(x / 5)[..., None] + 40 * np.cos(y / 7)[..., None]
  source = np.clip(waves + 15 * rng.normal(size=(h, w, 3)), 0, 255).astype(np.uint8)
  mask = np.zeros((h, w), bool)
  mask[12:28, 20:35] = True
  return source, mask, rng


def test_an_untouched_background_is_perfect_whatever_the_hole_holds():
  source, mask, rng = scene()
  result = source.copy()
  result[mask] = rng.integers(0, 256, (mask.sum(), 3))
  assert background.exactness(result, source, mask) == 1
  assert background.psnr(result, source, mask) == 100
  assert background.ssim(result, source, mask) == 1


def test_exactness_is_the_share_of_pixels_of_three_equal_bytes():
  source, mask, _ = scene()
  result = source.copy()
  result[0, :30, 1] ^= 1
  result[1, :10] ^= 1
  result[mask] = 0
  expected = 1 - 40 / (~mask).sum()
  np.testing.assert_allclose(background.exactness(result, source, mask), expected, rtol=1e-12)


def test_psnr_is_over_the_background_alone_and_does_not_wrap():
  source = np.full((16, 16, 3), 250, np.uint8)
  mask = np.zeros((16, 16), bool)
  mask[:4] = True
  result = np.full_like(source, 10)
  np.testing.assert_allclose(
    background.psnr(result, source, mask), -20 * np.log10(240 / 255), rtol=1e-12
  )
  result[4:] = source[4:]
  result[4:, :, 0] -= 3
  np.testing.assert_allclose(
    background.psnr(result, source, mask), -10 * np.log10(9 / 255**2 / 3), rtol=1e-9
  )


def test_ssim_counts_background_pixels_only_in_every_window():
  """The masked statistics of the docstring, pixel by pixel."""
  source, mask, rng = scene(24, 26)
  noisy = np.clip(source + 20.0 * rng.normal(size=source.shape), 0, 255).astype(np.uint8)
  offsets = np.arange(-5, 6)
  bell = np.exp(-(offsets**2) / (2 * 1.5**2))
  window = np.outer(bell, bell)
  values = []
  for y in range(5, 19):
    for x in range(5, 21):
      if mask[y, x]:
        continue
      here = (slice(y - 5, y + 6), slice(x - 5, x + 6))
      weight = (window * ~mask[here])[..., None]
      weight = weight / weight.sum()
      a, b = noisy[here].astype(float), source[here].astype(float)
      mean_a, mean_b = (weight * a).sum((0, 1)), (weight * b).sum((0, 1))
      var_a = (weight * (a - mean_a) ** 2).sum((0, 1))
      var_b = (weight * (b - mean_b) ** 2).sum((0, 1))
      cov = (weight * (a - mean_a) * (b - mean_b)).sum((0, 1))
      c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
      upper = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
      values.append(upper / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
  np.testing.assert_allclose(background.ssim(noisy, source, mask), np.mean(values), rtol=1e-9)


def test_damage_of_the_background_shows_in_all_three_and_grows():
  source, mask, rng = scene()
  noise = rng.normal(size=source.shape)
  found = []
  for strength in (0.3, 1, 4, 12):
    result = np.clip(source + strength * noise, 0, 255).astype(np.uint8)
    scores = (background.exactness, background.psnr, background.ssim)
    found.append([score(result, source, mask) for score in scores])
  assert (np.diff(found, axis=0) < 0).all()


def test_damage_beside_the_hole_is_not_diluted_by_it():
  source, mask, _ = scene()
  beside, far = source.copy(), source.copy()
  beside[28:34, 22:33] = 255 - beside[28:34, 22:33]
  far[5:11, 5:16] = 255 - far[5:11, 5:16]
  losses = [1 - background.ssim(result, source, mask) for result in (beside, far)]
  assert 0.5 < losses[0] / losses[1] < 1.5


@pytest.mark.parametrize('score', [background.exactness, background.psnr, background.ssim])
def test_what_cannot_be_compared_is_refused(score):
  source, mask, _ = scene()
  with pytest.raises(ValueError, match='50 x 40 .* but the source is 40 x 50'):
    score(source, source.transpose(1, 0, 2), mask)
  with pytest.raises(ValueError, match='50 x 40 .* but the mask is 50 x 39'):
    score(source, source, mask[:-1])
  with pytest.raises(ValueError, match='covers the whole picture'):
    score(source, source, np.ones_like(mask))


def test_ssim_needs_a_background_away_from_the_edge():
  source, mask, _ = scene()
  rim = np.zeros_like(mask)
  rim[4:-4, 4:-4] = True
  with pytest.raises(ValueError, match='5 pixels from the edge of the 50 x 40'):
    background.ssim(source, source, rim)
  tiny = source[:8, :8]
  with pytest.raises(ValueError, match='the 8 x 8 picture'):
    background.ssim(tiny, tiny, np.zeros((8, 8), bool))
