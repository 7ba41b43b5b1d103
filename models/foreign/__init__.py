"""Files that other programs wrote: opened, measured and parsed here, and nowhere else.

Whatever is wrong with one ends in a ValueError of one line: the file, the place, what was expected.
Sizes that a file declares are compared with the file before anything is allocated for them.
"""
