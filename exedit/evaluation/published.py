"""Published numbers that evaluations print beside their own, with their sources."""

from typing import NamedTuple


class Row(NamedTuple):
  """A method on PIE-Bench, in the units of its papers' tables (see PIE_BENCH)."""

  method: str
  structure: float
  psnr: float
  lpips: float
  mse: float
  ssim: float
  clip: float
  clip_edited: float
  source: str


PNP, INFEDIT, VIMAEDIT = 'arXiv 2310.01506', 'arXiv 2312.04965', 'arXiv 2410.10496'

# All 700 edits with Stable Diffusion 1.x: structure distance x 1e3, PSNR in dB, LPIPS x 1e3, MSE x
# 1e4 and SSIM x 1e2 of the background, CLIP similarity of the whole picture and the edited part.
PIE_BENCH = (
  Row('DDIM + P2P', 69.43, 17.87, 208.80, 219.88, 71.14, 25.01, 22.44, PNP),
  Row('null-text + P2P', 13.44, 27.03, 60.67, 35.86, 84.11, 24.75, 21.86, PNP),
  Row('negative-prompt + P2P', 16.17, 26.21, 69.01, 39.73, 83.40, 24.61, 21.87, PNP),
  Row('StyleDiffusion + P2P', 11.65, 26.05, 66.10, 38.63, 83.42, 24.78, 21.72, PNP),
  Row('Direct + P2P', 11.65, 27.22, 54.55, 32.86, 84.76, 25.02, 22.10, PNP),
  Row('Direct + MasaCtrl', 24.70, 22.64, 87.94, 81.09, 81.33, 24.38, 21.35, PNP),
  Row('InfEdit (LCM)', 13.78, 28.51, 47.58, 32.09, 85.66, 25.03, 22.22, INFEDIT),
  Row('ViMAEdit (image prompt)', 12.43, 28.49, 44.39, 29.12, 86.38, 25.97, 22.85, VIMAEDIT),
)

# Custom-Edit (arXiv 2305.15779), figure 4: 100 x the cosine of CLIP ViT-B/32 features of the edit
# and its source, and of the edit and its references. The points are read off the figure, +-0.2, in
# the order of the knob: rising strength of P2P, falling strength of SDEdit. The paper has no table.
FIGURE_4 = {
  'P2P, Custom Diffusion': ((81.1, 70.3), (83.4, 69.0), (86.2, 67.3), (88.7, 65.1)),
  'P2P, DreamBooth': ((83.2, 65.5), (88.1, 63.5), (92.6, 61.0), (95.7, 59.6)),
  'P2P, Textual Inversion': ((80.1, 67.3), (83.4, 66.1), (86.2, 64.4), (89.7, 62.1)),
  'SDEdit, Custom Diffusion': ((72.3, 76.2), (76.0, 72.8), (79.9, 69.8), (84.3, 66.5)),
  'SDEdit, DreamBooth': ((68.8, 78.3), (73.3, 72.8), (80.8, 67.5), (87.6, 64.9)),
  'SDEdit, Textual Inversion': ((72.6, 70.9), (76.4, 68.7), (81.1, 66.2), (86.6, 63.1)),
}
