"""Images as arrays: read, put on a grid and back, masks."""
