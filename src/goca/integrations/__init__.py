"""goca inside other programs: one module for each, imported by that program or where it is installed."""
