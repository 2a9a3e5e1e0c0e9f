"""The computer: device, processes, files, progress, what a run leaves for tracing it."""
