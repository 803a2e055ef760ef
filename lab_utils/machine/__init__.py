"""The machine: what is installed (environment.py), whether a run fits (gpu.py, memory.py), and how fast it is."""
