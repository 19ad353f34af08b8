"""Opens a weight file of any kind. The kind is told by the first bytes, not by the name."""

import os
from pathlib import Path

from exedit.runtime.errors import UserError
from exedit.weights.formats import safetensors, torch
from exedit.weights.formats.tensor import File, Tensor, damaged, quoted, read_json

INDEX = '.index.json'  # the ending of the list of shards that stands for a single file
LONGEST_NAME = 255  # characters of a file's name


def open_tensors(path: str | os.PathLike, nested: bool = False) -> dict[str, Tensor]:
  """Returns the tensors of a weight file by name, unread. Nothing in the file is executed.

  path: a `.safetensors`; a `.bin`, `.pt`, `.pth` or `.ckpt` that any version of torch.save wrote;
  or the `.index.json` of shards of these kinds.
  nested: take all tensors of torch's files, see `torch_names.read_weights`.
  Raises:
    UserError: with the file, what is wrong and what to do. Damage inside a tensor's own bytes
      shows only when the tensor is read.
  """
  file = File(path)
  kind = _kind(file)
  return _open_shards(file) if kind == 'index' else _open_one(file, kind, nested)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
  """Returns the texts beside the tensors of a file that exedit wrote, or those of a .safetensors.

  Raises:
    UserError: if the file is damaged. ValueError: for bytes that are no text.
  """
  file = File(path)
  readers = dict(safetensors=safetensors.read_metadata, zip=torch.read_notes)
  return readers.get(_kind(file), lambda _: {})(file)


def _open_one(file: File, kind: str, nested: bool = False) -> dict[str, Tensor]:
  if kind == 'safetensors':
    return safetensors.open_safetensors(file)
  return dict(zip=torch.open_zip, legacy=torch.open_legacy)[kind](file, nested)


def _kind(file: File) -> str:
  """'safetensors', 'zip', 'legacy' or 'index'; UserError with its name for any other file."""
  head = file.read(0, min(file.size, 512)).tobytes()
  text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if head[:4] in (b'PK\x03\x04', b'PK\x05\x06'):
    return 'zip'
  if torch.is_legacy(head):
    return 'legacy'
  if head[4:9] == b'\0\0\0\0{':  # a header of less than 4 GB; text has no zeros there
    return 'safetensors'
  if text.startswith(b'{'):
    return 'index'
  if not head:
    raise UserError(f'{file.path} is empty (0 bytes): fetch it again')
  if text.startswith(b'version https://git-lfs'):
    raise UserError(
      f'{file.path} is a Git LFS pointer of {file.size} bytes, not the weights themselves: run'
      ' `git lfs pull` in its folder, or download the file'
    )
  if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
    raise UserError(
      f'{file.path} is a web page saved under the name of a weight file: download the file itself'
    )
  if head[:1] == b'\x80' or head[257:262] == b'ustar':
    raise UserError(
      f'{file.path} is a plain pickle or a tar, which only the first versions of torch wrote: load'
      ' it with torch and save it again (torch.save), or use a .safetensors file'
    )
  if os.path.splitext(file.path)[1] == '.safetensors':
    return 'safetensors'
  raise UserError(
    f'{file.path} begins with {quoted(head[:8])} and is no weight file: give a .safetensors, a'
    f' torch .ckpt/.bin/.pt/.pth, or the *{INDEX} of shards'
  )


def _open_shards(file: File) -> dict[str, Tensor]:
  """The tensors that an index distributes over the files beside it."""
  names = read_json(file.path).get('weight_map')
  if not isinstance(names, dict) or not all(isinstance(s, str) for s in names.values()):
    raise UserError(
      f'{file.path} is no index of shards (it has no weight_map from names to files): give a weight'
      f' file or a *{INDEX}'
    )
  shards = {}
  for shard in sorted(set(names.values())):
    plain = shard.isprintable() and not set(shard) & set('/\\') and shard not in ('', '..')
    if not plain or len(shard) > LONGEST_NAME:
      raise damaged(file.path, f'it names the shard {quoted(shard)}, which is no plain file name')
    part = File(Path(file.path).parent / shard)
    if (kind := _kind(part)) == 'index':
      raise damaged(file.path, f'its shard {quoted(shard)} is an index itself')
    shards[shard] = _open_one(part, kind)
  for name, shard in names.items():
    if name not in shards[shard]:
      raise damaged(file.path, f'it looks for {quoted(name)} in {quoted(shard)}, which has none')
  return {name: shards[shard][name] for name, shard in names.items()}
