"""How much memory this machine has for one process."""

import os

LIMITS = ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes')


def of_machine() -> int:
  """The bytes of this machine's memory, or of the container's limit if that is smaller."""
  found = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
  for path in LIMITS:
    if os.path.exists(path):
      with open(path, encoding='ascii') as file:
        limit = file.read().strip()
      found += [int(limit)] if limit.isdigit() else []
  return min(found)
