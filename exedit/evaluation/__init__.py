"""A benchmark, scored: what lies behind exedit.evaluate."""
