"""Plan a training run for TPUs that are not there: compile its step, and estimate its time."""
