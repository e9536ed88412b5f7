"""Maps inside the model for one image and expression (features, word affinities, masks), and their figure."""
