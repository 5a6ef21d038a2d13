"""The programs: they parse, call the library and print; nothing of the method is in here."""
