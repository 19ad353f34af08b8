"""Shards of small pictures with captions, and the tokenizer that spells them."""

import numpy as np

from exedit.input_pipeline import codec, tf_example, tfrecord
from tests import pictures, vocabulary

CAPTIONS = ('a red ball', 'a blue star', 'photo of a ball', 'a star of red')


def record(picture, captions, name='a.png', **more) -> bytes:
  """A serialized example; captions are texts."""
  features = {'image': codec.png(picture), 'image/filename': name.encode(), **more}
  if captions is not None:
    features['caption'] = [text.encode() for text in captions]
  return tf_example.serialize_example(features)


def features(*args, **more) -> dict:
  """The features of `record`, as the loader gets them."""
  return tf_example.parse_example(record(*args, **more))


def write(folder, count=12, side=16, captions=CAPTIONS) -> int:
  """Shards of both splits and `tokenizer/` in an existing folder; returns its number of tokens."""
  rng = np.random.default_rng(0)
  for split in ('train', 'validation'):
    made = [
      record(pictures.noise(rng, side, side), [captions[i % len(captions)]], f'{split}_{i}.png')
      for i in range(count)
    ]
    tfrecord.write_shard(f'{folder}/x-{split}.tfrecord-00000-of-00001', made)
  return vocabulary.write(folder / 'tokenizer')
