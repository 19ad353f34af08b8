"""Folders and files in the layouts of exedit, diffusers and the original code."""
