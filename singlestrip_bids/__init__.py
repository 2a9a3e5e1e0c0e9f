"""SingleStrip as a BIDS App: skull-stripping learnt from one labelled scan."""

__version__ = "0.1.0"
