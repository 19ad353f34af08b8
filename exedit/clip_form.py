"""The form of the system that trains CLIP's towers: nothing to fill in, because it edits nothing.

It imports no JAX: see `systems.forms`.
"""

from exedit.editing.settings import EditSettings
from exedit.systems import Form

FORM = Form(name='clip', inputs=(), settings=EditSettings)
