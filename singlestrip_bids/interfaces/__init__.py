"""Interfaces of other programs' kinds; each needs an extra of its own."""
