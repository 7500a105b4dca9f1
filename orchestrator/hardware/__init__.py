"""What machines there are."""
