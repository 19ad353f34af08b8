"""Measures training examples per second and core, against a plain loop of the same operations.

  python -m benchmarks.input_pipeline --output=input_pipeline.json
  python -m benchmarks.input_pipeline --width=64 --height=64 --size=32 --exemplar_size=32

The plain loop does what PbE ldm/data/open-images.py does, with Pillow, OpenCV and numpy: it decodes
the file twice (OpenCV for the exemplar, Pillow for the image), draws the mask over the whole
picture, converts everything to floats at full size, then cuts and resizes. It has no elastic field,
which moves no pixel by more than 0.02. Times are processor seconds of one thread, so that other
programs disturb them little.
"""

import contextlib
import io
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from unittest import mock

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw

from benchmarks import harness
from exedit.input_pipeline import augment, codec, crops, masks, open_images, tf_example
from exedit.runtime.doors import Flag

CLIP_MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.float32([0.26862954, 0.26130258, 0.27577711])
Laps = dict[str, float]


class Watch:
  """Processor seconds by stage; a stage inside another one counts for the outer one only."""

  def __init__(self):
    self.laps, self.running = defaultdict(float), False

  def wrap(self, stage: str, function: Callable) -> Callable:
    """Returns the function, timed."""

    def timed(*args, **kwargs):
      if self.running:
        return function(*args, **kwargs)
      self.running, start = True, time.thread_time()
      try:
        return function(*args, **kwargs)
      finally:
        self.laps[stage] += time.thread_time() - start
        self.running = False

    return timed


# Ours.


def ours(
  records: list[bytes], batch_size: int, watch: Watch | None = None, **settings
) -> Iterator[dict]:
  """Yields batches as input_pipeline.loader makes them, in this thread."""
  parse, make, stack = tf_example.parse_example, open_images.make_example, _stack
  if watch:
    parse, stack = watch.wrap('parsing', parse), watch.wrap('batching', stack)
  for start in range(0, len(records), batch_size):
    rows = range(start, min(start + batch_size, len(records)))
    yield stack([make(parse(records[i]), np.random.default_rng([0, i]), **settings) for i in rows])


def our_laps(records: list[bytes], batch_size: int, **settings) -> Laps:
  """Returns seconds by stage; a watch wraps the functions that make_example calls."""
  watch = Watch()
  stages = dict(
    decode=[(codec, 'decode')],
    crop=[(crops, name) for name in ('square_window', 'exemplar', 'cut', 'resize')],
    masks=[(masks, 'extend_box'), (masks, 'sample')],
    augmentation=[(augment, 'exemplar')],
  )
  with contextlib.ExitStack() as patches:
    for stage, functions in stages.items():
      for module, name in functions:
        timed = watch.wrap(stage, getattr(module, name))
        patches.enter_context(mock.patch.object(module, name, timed))
    for _ in ours(records, batch_size, watch, **settings):
      pass
  return watch.laps


def _stack(examples: list[dict]) -> dict[str, np.ndarray]:
  return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


# The plain loop.


def plain(
  records: list[bytes], batch_size: int, watch: Watch, size=512, exemplar_size=224
) -> Iterator[dict]:
  """Yields batches of float32 [b 3 h w] as the released data set makes them, one by one."""
  decode = watch.wrap('decode', _decode_twice)
  reference = watch.wrap('augmentation', _augment)
  draw, square = watch.wrap('masks', _draw_mask), watch.wrap('crop', _square)
  tensors, stack = watch.wrap('crop', _full_size_tensors), watch.wrap('batching', _stack)
  parse = watch.wrap('parsing', tf_example.parse_example)
  rng = random.Random(0)
  batch = []
  for record in records:
    features = parse(record)
    bgr, picture = decode(features['image'][0])
    width, height = picture.size
    y0, x0, y1, x1 = rng.choice(features['bobjects/bbox'].reshape(-1, 4).tolist())
    box = [int(x0 * width), int(y0 * height), int(x1 * width), int(y1 * height)]
    exemplar = reference(bgr, box, rng, exemplar_size)
    free = (box[0], box[1], width - box[2], height - box[3])
    moved = [rng.randint(0, int(0.4 * f)) for f in free]
    extended = [box[0] - moved[0], box[1] - moved[1], box[2] + moved[2], box[3] + moved[3]]
    mask = draw(width, height, box, extended, rng)
    image, mask = tensors(picture, mask)
    image, mask = square(image, mask, extended, rng, size)
    batch.append(dict(image=image, masked=image * mask, mask=mask, exemplar=exemplar))
    if len(batch) == batch_size:
      yield stack(batch)
      batch = []
  if batch:
    yield stack(batch)


def _decode_twice(data: bytes) -> tuple[np.ndarray, PIL.Image.Image]:
  bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  return bgr, PIL.Image.open(io.BytesIO(data)).convert('RGB')


def _augment(bgr: np.ndarray, box: list[int], rng: random.Random, size: int) -> np.ndarray:
  """Cuts, resizes, flips, rotates, blurs and warps the exemplar; returns a normalised tensor."""
  height, width = bgr.shape[:2]
  x0, y0, x1, y1 = box
  cut = bgr[max(0, y0 - 10) : min(height, y1 + 10), max(0, x0 - 10) : min(width, x1 + 10)]
  image = cv2.cvtColor(cut, cv2.COLOR_BGR2RGB)
  image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
  if rng.random() < 0.5:
    image = np.ascontiguousarray(image[:, ::-1])
  if rng.random() < 0.5:
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(-20, 20), 1.0)
    image = cv2.warpAffine(image, turn, (size, size), borderMode=cv2.BORDER_REFLECT_101)
  if rng.random() < 0.3:
    kernel = rng.choice([3, 5, 7])
    image = cv2.blur(image, (kernel, kernel))
  if rng.random() < 0.3:
    numbers = np.random.RandomState(rng.randint(0, 10000))
    middle, third = size // 2, size // 3
    anchors = np.float32(
      [[middle + third] * 2, [middle + third, middle - third], [middle - third] * 2]
    )
    jitter = 50 * size / 224
    moved = anchors + numbers.uniform(-jitter, jitter, anchors.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(anchors, moved)
    image = cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REFLECT_101)
  tensor = image.transpose(2, 0, 1).astype(np.float32) / 255
  return (tensor - CLIP_MEAN[:, None, None]) / CLIP_STD[:, None, None]


def _draw_mask(
  width: int, height: int, box: list, extended: list, rng: random.Random
) -> np.ndarray:
  """Returns a polygon from four Bezier curves or the extended box, float32 [h w], 1 = keep."""
  if rng.uniform(0, 1) >= 0.5:
    mask = np.ones((height, width), np.float32)
    mask[extended[1] : extended[3], extended[0] : extended[2]] = 0
    return mask
  (x0, y0, x1, y1), (ex0, ey0, ex1, ey1) = box, extended
  mx, my = (x0 + x1) / 2, (y0 + y1) / 2
  points = []
  for a, b, c in (
    ((x0, y0), (mx, ey0), (x1, y0)),
    ((x1, y0), (ex1, my), (x1, y1)),
    ((x1, y1), (mx, ey1), (x0, y1)),
    ((x0, y1), (ex0, my), (x0, y0)),
  ):
    for i in range(1, 19):
      t = 0.05 * i
      x, y = ((1 - t) ** 2 * p + 2 * t * (1 - t) * q + t * t * r for p, q, r in zip(a, b, c))
      points.append((x + rng.randint(-5, 5), y + rng.randint(-5, 5)))
  picture = PIL.Image.new('L', (width, height), 255)
  PIL.ImageDraw.Draw(picture).polygon(points, fill=0)
  return np.asarray(picture).astype(np.float32) / 255


def _full_size_tensors(picture: PIL.Image.Image, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Applies ToTensor and Normalize(0.5, 0.5) to the whole picture, before it is cut."""
  image = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)).astype(np.float32) / 255
  return (image - np.float32(0.5)) / np.float32(0.5), mask[None]


def _square(image, mask, extended: list, rng: random.Random, size: int):
  """Cuts a square around the extended box and resizes each channel bilinearly."""
  height, width = mask.shape[1:]
  wide = width > height
  long, short = max(width, height), min(width, height)
  (a0, b0, a1, b1) = extended if wide else [extended[i] for i in (1, 0, 3, 2)]
  first, last = max(0, a1 - short), min(long, a0 + short) - short
  if width != height and first < last:
    left = rng.randint(first, last)
    free = min(b0, a0 - left, left + short - a1, short - b1)
    r = rng.randint(0, int(0.6 * free))
    along, across = slice(left + r, left + short - r), slice(r, short - r)
    cut = (slice(None), across, along) if wide else (slice(None), along, across)
    image, mask = image[cut], mask[cut]
  both = np.concatenate([image, mask])
  both = np.stack([cv2.resize(c, (size, size), interpolation=cv2.INTER_LINEAR) for c in both])
  return both[:3], both[3:]


# Measuring.


def pictures(count: int, width: int, height: int, quality: int) -> list[bytes]:
  """Returns records with one to three boxes and a JPEG with the spectrum of a photo."""
  records = []
  for i in range(count):
    rng = np.random.default_rng([i, width, height])
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    fall = frequency**-1.1
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(3, height, width))) * fall, (height, width))
    noise = (noise - noise.mean((1, 2), keepdims=True)) / noise.std((1, 2), keepdims=True)
    image = 128 + 50 * noise[0] + np.stack([15 * noise[1], 0 * noise[0], 15 * noise[2]])
    image = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    sides = rng.uniform(0.2, 0.8, (rng.integers(1, 4), 2))
    corner = rng.uniform(0, 1 - sides)
    boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
    records.append(
      tf_example.serialize_example(
        {'image': data, 'image/filename': b'%d.jpg' % i, 'bobjects/bbox': boxes.ravel()}
      )
    )
  return records


def measure(run: Callable[[], None], rounds: int) -> float:
  """Returns the processor seconds of this thread in the fastest of some rounds."""
  best = float('inf')
  for _ in range(rounds):
    start = time.thread_time()
    run()
    best = min(best, time.thread_time() - start)
  return best


def main(output: str, count: int, rounds: int, batch_size: int, **sizes: int) -> None:
  """Measures both, prints the table, and writes the JSON."""
  cv2.setNumThreads(0)  # one core
  settings = dict(count=count, batch_size=batch_size, **sizes)
  records = pictures(count, *(sizes.pop(name) for name in ('width', 'height', 'quality')))
  machine, watch = harness.machine(), Watch()

  def empty(batches: Iterator) -> None:
    for _ in batches:
      pass

  seconds = dict(
    ours=measure(lambda: empty(ours(records, batch_size, **sizes)), rounds),
    plain=measure(lambda: empty(plain(records, batch_size, Watch(), **sizes)), rounds),
  )
  empty(plain(records, batch_size, watch, **sizes))
  laps = dict(ours=our_laps(records, batch_size, **sizes), plain=watch.laps)
  report = dict(
    images_per_second_and_core={name: count / value for name, value in seconds.items()},
    ratio=seconds['plain'] / seconds['ours'],
    milliseconds_by_stage={
      who: {stage: 1e3 * value / count for stage, value in lap.items()} for who, lap in laps.items()
    },
    settings=settings | dict(bytes_per_image=sum(map(len, records)) // count),
    machine=machine,
  )
  harness.finish(report, _lines(report), output)


def _lines(report: dict) -> Iterator[str]:
  ms, rate = report['milliseconds_by_stage'], report['images_per_second_and_core']
  stages = ('parsing', 'decode', 'crop', 'masks', 'augmentation', 'batching')
  rows: list = [(stage, [ms['ours'][stage], ms['plain'][stage]]) for stage in stages]
  rows.append(('images/s/core', [f'{rate[who]:.1f}' for who in ('ours', 'plain')]))
  yield from harness.table(('ms per image', 'ours', 'plain loop'), rows)
  yield f'{report["ratio"]:.2f} times the plain loop'


FLAGS = (
  Flag('count', 64, 'number of pictures', least=1),
  Flag('rounds', 3, 'number of rounds; the fastest counts', least=1),
  Flag('batch_size', 16, 'number of examples in a batch', least=1),
  Flag('width', 1024, 'width of a stored picture', least=1),
  Flag('height', 768, 'height of a stored picture', least=1),
  Flag('quality', 80, 'JPEG quality; 80 gives about the 300 kB of an Open Images file', least=1),
  Flag('size', 512, 'side of image and mask', least=1),
  Flag('exemplar_size', 224, 'side of the exemplar', least=1),
)

if __name__ == '__main__':
  harness.door(main, FLAGS, __doc__)
