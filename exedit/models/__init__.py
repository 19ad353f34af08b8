"""Networks as functions of arrays. They know no noise schedule, no config and no files."""
