"""What a run leaves: tables, pages, pictures, and their mirror on Weights & Biases."""
