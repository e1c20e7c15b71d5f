"""What a run leaves: keys, tables, pages, pictures, and their mirror on Weights & Biases."""

import os

# Pictures look the same everywhere and need nothing but matplotlib: neither a backend that the user chose for windows,
# nor TeX or a font of the user's own matplotlibrc, either of which may be missing. Read when matplotlib is imported.
os.environ["MPLBACKEND"] = "agg"
os.environ["MATPLOTLIBRC"] = os.devnull
