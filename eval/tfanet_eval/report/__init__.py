"""The HTML report: entries (the evaluations), then tables, charts and images of them, then the page."""
