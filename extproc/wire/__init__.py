"""Names and message shapes on the wire between Envoy and the core."""
