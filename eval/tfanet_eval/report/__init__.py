"""The HTML report: results as tables, charts and example images."""
