"""Everything that `mmspec train` runs; nothing here is needed to generate."""
