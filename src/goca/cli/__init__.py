"""The command line: one file per command, which holds its options, its call of the library and what it prints."""
