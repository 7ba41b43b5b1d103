"""Documents of one's own: of a file, of this machine, and everyday ones."""
