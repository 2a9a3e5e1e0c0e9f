"""Pages, pictures and texts that people look at."""
