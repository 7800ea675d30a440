"""Reports of a migration: one HTML page and the terminal."""
