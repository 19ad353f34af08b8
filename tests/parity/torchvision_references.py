"""Writes what the published feature networks compute from random weights and images to a folder.

  python tests/parity/torchvision_references.py FOLDER_OF_PACKAGES OUT

It runs in its own process, so that no other test imports torchvision. The packages are those of
requirements-torchvision.txt. Weight files are written in their publishers' formats.
"""

import json
import sys

import numpy as np

OUT, SIZES = sys.argv[2], [(40, 60), (75, 75), (301, 224), (97, 300)]
sys.path.append(sys.argv[1])  # at the end, because one of the packages contains a `tests`

import torch  # noqa: E402


def import_torchvision():
  """Import it beside a torch without CUDA, which needs two of its operators' names defined."""
  try:
    import torchvision
  except RuntimeError:
    for module in [name for name in sys.modules if name.startswith('torchvision')]:
      del sys.modules[module]
    for name in ('nms', 'qnms'):
      signature = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
      torch.library.define(f'torchvision::{name}', signature)
    import torchvision
  return torchvision


torchvision = import_torchvision()

import lpips  # noqa: E402
import pytorch_fid.inception  # noqa: E402
import timm  # noqa: E402
import torch_fidelity.feature_extractor_clip as openai  # noqa: E402
import torchmetrics  # noqa: E402
import torchmetrics.image  # noqa: E402
import torchmetrics.regression  # noqa: E402
from torchvision import transforms as T  # noqa: E402

CLIP = T.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def randomised(module):
  """Make every weight and statistic random, at a scale that keeps activations near 1."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, p in [*module.named_parameters(), *module.named_buffers()]:
      noise = torch.randn(p.shape, generator=generator)
      if p.ndim > 1 and name.endswith('weight'):
        p.copy_(noise * (2 / p[0].numel()) ** 0.5)
      elif name.endswith('running_var'):
        p.copy_(noise.abs() + 0.5)
      elif p.is_floating_point() and 'scaling_layer' not in name:
        p.add_(0.2 * noise)
  return module.eval()


def pictures(count, size):
  """Alternate noise and smooth pictures, which the networks tell apart."""
  noise = np.random.default_rng(1).integers(0, 256, (count, *size, 3), dtype=np.uint8)
  return np.stack([smooth(size, i) if i % 2 else noise[i] for i in range(count)])


def smooth(size, seed=0):
  """Draw a smooth picture, which survives resizing."""
  coarse = torch.rand((1, 3, 9, 9), generator=torch.Generator().manual_seed(seed))
  fine = torch.nn.functional.interpolate(coarse, size, mode='bicubic').clamp(0, 1)
  return (255 * fine[0]).round().to(torch.uint8).permute(1, 2, 0).numpy()


def floats(batch):
  return torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255


def save_old(tensors, name):
  torch.save(tensors, f'{OUT}/{name}', _use_new_zipfile_serialization=False)


def inception():
  network = torchvision.models.inception_v3(
    num_classes=1008, aux_logits=False, weights=None, init_weights=False
  )
  weights = randomised(network).state_dict()
  save_old(weights, 'inception.pth')
  pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: weights
  network = pytorch_fid.inception.InceptionV3().eval()
  batch = pictures(2, (90, 120))
  with torch.no_grad():
    pool3 = network(floats(batch))[0][:, :, 0, 0]
  np.savez(f'{OUT}/inception.npz', pictures=batch, features=pool3)


def distances(net):
  network = randomised(lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False))
  linear = {k: v for k, v in network.state_dict().items() if k.startswith('lin') and k[3] != 's'}
  torch.save(network.state_dict(), f'{OUT}/{net}_whole.pth')
  save_old(linear, f'{net}/linear.pth')
  features = {}
  for name, value in network.net.state_dict().items():
    features[f'features.{name.split(".", 1)[1]}'] = value
  save_old(features | {'classifier.1.weight': torch.zeros(5, 4)}, f'{net}/features.pth')
  a, b = pictures(4, (48, 70)).reshape(2, 2, 48, 70, 3)
  left, right = 2 * floats(a) - 1, 2 * floats(b) - 1
  with torch.no_grad():
    whole = network(left, right)[:, 0, 0, 0]
    network.spatial = True
    maps = network(left, right)[:, 0]
  np.savez(f'{OUT}/{net}.npz', a=a, b=b, distances=whole, maps=maps)


def clip():
  network = randomised(openai.VisionTransformer(40, 8, 128, 3, 2, 24))
  weights = {f'visual.{name}': value for name, value in network.state_dict().items()}
  others = dict(logit_scale=torch.ones(()), text_projection=torch.zeros(3, 2))
  others |= {'transformer.resblocks.0.ln_1.weight': torch.ones(3)}
  torch.save(weights | others, f'{OUT}/clip.pt')
  batch = pictures(3, (40, 40))
  with torch.no_grad():
    features = network(CLIP(floats(batch)))
  np.savez(f'{OUT}/clip.npz', pictures=batch, features=features)


def dino():
  network = timm.models.vision_transformer.VisionTransformer(
    img_size=48, patch_size=8, embed_dim=128, depth=3, num_heads=2, num_classes=0
  )
  torch.save(randomised(network).state_dict(), f'{OUT}/dino.pth')
  batch = pictures(3, (48, 48))
  with torch.no_grad():
    tokens = network.forward_features(IMAGENET(floats(batch)))
  np.savez(f'{OUT}/dino.npz', pictures=batch, features=tokens[:, 0])


def pie_bench():
  """Apply PIE-Bench's metrics to frames that a mask leaves black in part."""
  network = timm.models.vision_transformer.VisionTransformer(
    img_size=48, patch_size=8, embed_dim=128, depth=3, num_heads=2, num_classes=0
  )
  network.load_state_dict(torch.load(f'{OUT}/dino.pth'))
  network.eval()
  seen = []
  network.blocks[-1].attn.qkv.register_forward_hook(lambda module, _, out: seen.append(out[0]))
  a, b = pictures(6, (80, 80)).reshape(2, 3, 80, 80, 3)
  mask = np.ones((80, 80, 1), np.float32)
  mask[20:50, 10:60] = 0
  prepare = T.Compose([T.Resize(48, antialias=False), IMAGENET])  # of 0 to 255, as published
  rows = []
  for pair in zip(a, b):
    sources = [torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None] for x in pair]
    seen.clear()
    with torch.no_grad():
      for source in sources:
        network(prepare(source))
    keys = [out.reshape(37, 3, 2, 64)[:, 1].reshape(37, 128) for out in seen]
    norms = [k.norm(dim=1, keepdim=True) for k in keys]
    alike = [k @ k.T / (n @ n.T).clamp(min=1e-8) for k, n in zip(keys, norms)]
    left, right = (floats((x * mask)[None]).contiguous() for x in pair)
    rows.append(
      [
        torch.nn.functional.mse_loss(*alike),
        torchmetrics.image.PeakSignalNoiseRatio(data_range=1.0)(left, right),
        torchmetrics.regression.MeanSquaredError()(left, right),
        torchmetrics.image.StructuralSimilarityIndexMeasure(data_range=1.0)(left, right),
      ]
    )
  np.savez(f'{OUT}/pie_bench.npz', a=a, b=b, mask=mask[..., 0], values=np.array(rows))


def views():
  """Apply every preprocessing of the published code to pictures of several shapes."""
  bicubic = T.InterpolationMode.BICUBIC
  results: dict[str, np.ndarray] = {}
  for size in SIZES:
    array = smooth(size, size[0])
    picture, name = T.functional.to_pil_image(array), f'{size[0]}x{size[1]}'
    results[f'{name}/picture'] = array
    for kind, shorter, side, norm in [
      ('clip', 32, 32, CLIP),
      ('dino', 36, 32, IMAGENET),
      ('clip224', 224, 224, CLIP),
      ('dino224', 256, 224, IMAGENET),
    ]:
      steps = [T.Resize(shorter, bicubic), T.CenterCrop(side), T.ToTensor(), norm]
      results[f'{name}/{kind}'] = T.Compose(steps)(picture).permute(1, 2, 0).numpy()
    squashed = CLIP(T.ToTensor()(picture.resize((224, 224), 3)))
    results[f'{name}/squash'] = squashed.permute(1, 2, 0).numpy()
    y0, x0, y1, x1 = 5, 7, 33, 38  # first and last white pixel, as the published code cuts
    crop = CLIP(T.ToTensor()(picture))[:, y0:y1, x0:x1]
    region = T.Resize([224, 224], antialias=False)(crop)
    results[f'{name}/region'] = region.permute(1, 2, 0).numpy()
  np.savez(f'{OUT}/views.npz', **results)  # pyright: ignore[reportArgumentType]


def published_shapes():
  """Write the names and shapes of the networks at their published sizes, without weights."""
  with torch.device('meta'):
    networks = dict(
      inception=torchvision.models.inception_v3(
        num_classes=1008, aux_logits=False, weights=None, init_weights=False
      ),
      lpips_alex=torchvision.models.alexnet(weights=None),
      lpips_vgg=torchvision.models.vgg16(weights=None),
      lpips_squeeze=torchvision.models.squeezenet1_1(weights=None),
      clip_b32=torch.nn.ModuleDict(
        dict(visual=openai.VisionTransformer(224, 32, 768, 12, 12, 512))
      ),
      dino_s16=timm.models.vision_transformer.VisionTransformer(
        patch_size=16, embed_dim=384, num_heads=6, num_classes=0
      ),
    )
  shapes = {
    name: {key: list(value.shape) for key, value in network.state_dict().items()}
    for name, network in networks.items()
  }
  with open(f'{OUT}/shapes.json', 'w') as file:
    json.dump(shapes, file)


if __name__ == '__main__':
  inception()
  distances('alex')
  distances('vgg')
  distances('squeeze')
  clip()
  dino()
  pie_bench()
  views()
  published_shapes()
