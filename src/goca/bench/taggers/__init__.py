"""Who says which classes a picture shows."""
