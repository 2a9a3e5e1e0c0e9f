"""The app under hard terms: damaged files, kills, arrays of jobs, large datasets, containers."""
