"""Fakes and builders for tests, and for trying things without a cluster; shipped, so that others can test against them."""
