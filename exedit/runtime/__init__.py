"""What every program needs: errors, doors, files, processes, signals, compilation, versions."""
