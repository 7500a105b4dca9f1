"""Whether it is well."""
