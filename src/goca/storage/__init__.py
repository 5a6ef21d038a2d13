"""Files that survive a process being killed at any moment: written whole or not at all, or line by line."""
