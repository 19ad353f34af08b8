"""Tests, in the same folders as what they test; parity/ compares with PyTorch."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / 'fixtures'
