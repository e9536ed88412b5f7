"""The commands of evaluation: options here, the work in functions of the other modules."""
