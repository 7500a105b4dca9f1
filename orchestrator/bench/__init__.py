"""Measured links: what was measured, how one link compares with its like, and what the bandwidth model learns from it."""
