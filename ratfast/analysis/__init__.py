"""What sets of networks look like: distances between their weights. Needs no torch by itself."""
