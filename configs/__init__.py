"""One config file for each experiment."""
