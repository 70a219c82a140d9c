"""The server: an engine behind the API that everyone speaks."""
