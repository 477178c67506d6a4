"""The AI Model Gateway's data-plane brain: an Envoy external processor."""

__version__ = "0.1.0"
