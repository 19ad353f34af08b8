"""The web page: pictures and jobs in a folder, one worker that edits, and what a browser asks."""

LOOPBACK = ('localhost', '127.0.0.1', '::1')  # the names of this machine
