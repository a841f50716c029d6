"""Shared by all commands: errors, output files and folders, progress, help, rendering."""
