"""goca inside other people's programs: a module for each, which is imported by that program or where it is at hand."""
