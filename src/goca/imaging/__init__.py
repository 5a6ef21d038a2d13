"""Images in and out: loading and checking them, drawing over them, contact sheets."""
