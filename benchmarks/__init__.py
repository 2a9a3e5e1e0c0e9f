"""Phantom heads with known brain masks, and the scoring of predictions against them."""
