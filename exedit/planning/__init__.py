"""The step compiled for machines that are not there: what lies behind exedit.plan."""
