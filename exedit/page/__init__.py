"""The web page: pictures and jobs in a folder, one worker that edits, and what a browser asks."""
