"""Runs and the cluster as pictures: one HTML page that needs nothing but itself. Pure: JSON values in, text out."""
