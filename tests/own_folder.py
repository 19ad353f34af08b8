"""A folder of a person's own pictures, with its boxes in every form that a builder reads."""

import json

import numpy as np
from PIL import Image

from exedit.input_pipeline import tf_example, tfrecord
from exedit.input_pipeline.own import __main__ as door
from tests import pictures

WIDTH, HEIGHT = 64, 48
LABELS = ('teapot', 'чашка')
NAMES = [*(f'teapot/{i}.jpg' for i in range(4)), *(f'чашка/{i}.png' for i in range(4))]


def box_of(number):
  """x0, y0, x1, y1 in pixels."""
  return 8 + number, 4, 40 + number, 36


def write(folder, names=NAMES):
  """Writes pictures of noise with a bright box; two folders have equal names."""
  for number, name in enumerate(names):
    pixels = pictures.noise(np.random.default_rng(number), HEIGHT, WIDTH) // 2
    x0, y0, x1, y1 = box_of(number)
    pixels[y0:y1, x0:x1] += 128
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({'quality': 95} if name.endswith('.jpg') else {}))
  return folder


def label_of(name):
  return name.split('/')[0]


def coco(path, names=NAMES, outlines=False):
  """Boxes or outlines as COCO's file."""
  images = [
    dict(id=i, file_name=f'/home/me/{name}', width=WIDTH, height=HEIGHT)
    for i, name in enumerate(names)
  ]
  rows = []
  for i, name in enumerate(names):
    x0, y0, x1, y1 = box_of(i)
    row = dict(id=i, image_id=i, category_id=LABELS.index(label_of(name)))
    corners = [x0, y0, x1 - 1, y0, x1 - 1, y1 - 1, x0, y1 - 1]
    row |= dict(segmentation=[corners]) if outlines else dict(bbox=[x0, y0, x1 - x0, y1 - y0])
    rows.append(row)
  categories = [dict(id=i, name=label) for i, label in enumerate(LABELS)]
  path.write_text(json.dumps(dict(images=images, annotations=rows, categories=categories)))


def voc(folder, names=NAMES):
  folder.mkdir()
  for i, name in enumerate(names):
    edges = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), box_of(i)))
    size = f'<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>'
    text = f'<object><name>{label_of(name)}</name><bndbox>{edges}</bndbox></object>'
    xml = f'<annotation><filename>{name}</filename>{size}{text}</annotation>'
    (folder / f'label{i}.xml').write_text(xml, 'utf-8')


def yolo(folder, names=NAMES):
  for i, name in enumerate(names):
    x0, y0, x1, y1 = box_of(i)
    middle = (x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT
    numbers = *middle, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT
    path = (folder / name).with_suffix('.txt')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{LABELS.index(label_of(name))} {" ".join(map(str, numbers))}\n')
  (folder / 'classes.txt').write_text('\n'.join(LABELS), 'utf-8')


def table(path, names=NAMES, shares=False):
  by = (WIDTH, HEIGHT) * 2 if shares else (1, 1, 1, 1)
  lines = ['image;x0;y0;x1;y1;label']
  for i, name in enumerate(names):
    edges = ';'.join(f'{v / s}' for v, s in zip(box_of(i), by))
    lines.append(f'{name};{edges};{label_of(name)}')
  path.write_text('\n'.join(lines), 'utf-8')


def masks(folder, names=NAMES):
  for i, name in enumerate(names):
    x0, y0, x1, y1 = box_of(i)
    path = (folder / name).with_suffix('.mask.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pictures.box(HEIGHT, WIDTH, y0, x0, y1, x1)).convert('L').save(path)


def call(*flags):
  door.run(['own', *map(str, flags)])


def build(folder, output, *flags):
  """Builds, and returns the records of all splits by the names of their pictures."""
  call(f'--pictures={folder}', f'--output={output}', '--threads=1', *flags)
  return {**records(output, 'train'), **records(output, 'validation')}


def records(output, split):
  source = tfrecord.Source(tfrecord.shard_paths(str(output), split))
  found = map(tf_example.parse_example, source)
  return {features['image/filename'][0].decode(): features for features in found}
