"""The operator's command line over the config store and the admin API."""
