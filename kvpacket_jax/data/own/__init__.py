"""Documents of one's own: of a file, of this machine, and such as people have."""
