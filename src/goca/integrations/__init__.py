"""goca inside other people's programs; what lies at the root in `integrations/` is the part that they load."""
