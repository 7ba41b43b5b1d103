"""What the programs share: flags, errors in one line, and loading."""
