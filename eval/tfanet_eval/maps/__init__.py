"""Maps of what the model computes for one image and expression: features, word affinities, masks."""
