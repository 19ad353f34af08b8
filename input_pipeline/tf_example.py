"""tf.train.Example without TensorFlow: features to bytes and back, by protobuf.

No package that we require contains the generated module, so the messages are described here.
"""

from typing import Any

import numpy as np
from google.protobuf import (
  descriptor_pb2,
  descriptor_pool,
  message,
  message_factory,
  text_format,
)

from .errors import DataError

# As tensorflow/core/example/{example,feature}.proto, with other names, which the bytes do not
# contain. `entry` is a map there; a list has the same bytes and keeps its order.
_SCHEMA = """
name: "exedit/example.proto" package: "exedit" syntax: "proto3"
message_type { name: "Bytes"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Floats"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Integers"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes" number: 1 type: TYPE_MESSAGE type_name: "Bytes" oneof_index: 0 }
  field { name: "floats" number: 2 type: TYPE_MESSAGE type_name: "Floats" oneof_index: 0 }
  field { name: "integers" number: 3 type: TYPE_MESSAGE type_name: "Integers" oneof_index: 0 } }
message_type { name: "Entry" field { name: "key" number: 1 type: TYPE_STRING }
  field { name: "value" number: 2 type: TYPE_MESSAGE type_name: "Feature" } }
message_type { name: "Features"
  field { name: "entry" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "Entry" } }
message_type { name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: "Features" } }
"""


def _message_class():
  pool = descriptor_pool.DescriptorPool()
  pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
  return message_factory.GetMessageClass(pool.FindMessageTypeByName('exedit.Example'))


_Example: Any = _message_class()


def parse_example(record: bytes) -> dict[str, list[bytes] | np.ndarray]:
  """Returns the features of a serialized Example: list[bytes], float32 [n] or int64 [n] each.

  Raises:
    DataError: if the bytes are not an Example.
  """
  try:
    example = _Example.FromString(record)
  except message.DecodeError as error:
    raise DataError(f'not a tf.train.Example: {error}') from error
  return {entry.key: _values(entry.value) for entry in example.features.entry}


def _values(feature) -> list[bytes] | np.ndarray:
  kind = feature.WhichOneof('kind')
  if kind == 'floats':
    return np.array(feature.floats.value, np.float32)
  if kind == 'integers':
    return np.array(feature.integers.value, np.int64)
  return list(feature.bytes.value)


def serialize_example(features: dict[str, bytes | list[bytes] | np.ndarray]) -> bytes:
  """Serializes features as an Example, sorted by name: equal features give equal bytes.

  Arrays are flattened; floating ones become float lists, integer and boolean ones int64 lists.

  Raises:
    DataError: for an array of another type.
  """
  example = _Example()
  for name in sorted(features):
    kind, values = _kind(name, features[name])
    target = getattr(example.features.entry.add(key=name).value, kind)
    target.SetInParent()  # so that an empty list keeps its type
    target.value.extend(values)
  return example.SerializeToString()


def _kind(name: str, value: bytes | list[bytes] | np.ndarray) -> tuple[str, list]:
  if isinstance(value, bytes):
    return 'bytes', [value]
  if isinstance(value, list):
    return 'bytes', value
  array = np.asarray(value).reshape(-1)
  if array.dtype.kind == 'f':
    return 'floats', array.astype(np.float32).tolist()
  if array.dtype.kind in 'iub':
    return 'integers', array.astype(np.int64).tolist()
  raise DataError(f'feature {name!r} is {array.dtype}; an Example holds bytes, floats and integers')
