"""Pictures: files read and written, sheets of them, an edit put back into its photograph."""
