"""The inference engine that chat, evaluation and the Python face share."""
