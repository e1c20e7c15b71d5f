"""What a run leaves: keys, tables, pages, pictures, and their mirror on Weights & Biases."""

import os

# Pictures are drawn into files; a backend that the user chose for windows may not exist here, and would end the import.
os.environ["MPLBACKEND"] = "agg"
