"""Photos in files, edited: what lies behind exedit.sample."""
