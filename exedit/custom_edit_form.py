"""The form of the system that learns concepts: nothing to fill in, because it edits nothing itself.

It imports no JAX: see `systems.forms`.
"""

from exedit.stable_diffusion_form import Settings
from exedit.systems import Form

FORM = Form(name='custom_edit', inputs=(), settings=Settings)
