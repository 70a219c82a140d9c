"""The report of a run, as one HTML file and as Markdown, and the model card."""
