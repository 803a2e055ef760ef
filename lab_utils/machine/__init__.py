"""The machine: what is installed here (environment.py), whether a run fits (gpu.py, memory.py), how long steps take."""
