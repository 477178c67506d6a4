"""Pure functions from a Snapshot to Envoy resources, and the atomic files they are written to."""
