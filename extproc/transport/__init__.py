"""Serves the gRPC services that Envoy calls; knows frames and streams, nothing of gateways."""
